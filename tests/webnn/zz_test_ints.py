from dataclasses import replace
import numpy as np
from hypothesis import given, settings, strategies as st, HealthCheck
from tests.webnn.strategies_networks import pool2d
from tests.webnn.strategies import placed, bits
from tests.webnn.uses import check, Use, Graph
from kserve_wasm.webnn import OperatorError
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_ints(data):
    use = data.draw(placed(pool2d("maxPool2d"), opened=data.draw(st.booleans())))
    d = data.draw(st.sampled_from(["int8","uint8","int32","uint32","int64","uint64"]))
    x = data.draw(bits(d, use.arguments[0].shape))
    u = Use("maxPool2d",(x,),use.options,use.constants,use.open)
    try: g=Graph([u])
    except OperatorError: return
    g.program.check(tuple(t.shape for t in g._feeds.values()))
    check([u])
