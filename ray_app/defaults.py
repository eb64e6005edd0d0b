"""``serve build ray_app.defaults:app``: the application without arguments, as that command takes no builder."""

from ray_app.application import Arguments
from ray_app.application import app as build

app = build(Arguments())
