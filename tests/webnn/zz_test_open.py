import pytest
from hypothesis import given, settings, strategies as st, HealthCheck
from kserve_wasm.webnn.operator import OPERATORS
from kserve_wasm.webnn import OperatorError
from tests.webnn.test_operators import USES
from tests.webnn.strategies import placed
from tests.webnn.uses import check, Graph
ERR={}
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_open(name):
    @settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(placed(USES[name], opened=True))
    def agrees(use):
        try: g=Graph([use])
        except OperatorError as e:
            ERR.setdefault(name,set()).add(str(e)[:150]); return
        g.program.check(tuple(t.shape for t in g._feeds.values()))
        check([use])
    agrees()
    if name in ERR: print(name, len(ERR[name]), list(ERR[name])[:3])
