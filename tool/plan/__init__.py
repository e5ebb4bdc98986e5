"""What a model needs on given cards: weights, cache, layouts that fit, and the launch command.

It may import the leaves.
"""

from tool.plan.cards import GIB, Cards, parse_gpus
from tool.plan.layouts import Layout
from tool.plan.memory import Reserve, Stage
from tool.plan.model import FORMATS, Model, find_model
from tool.plan.plan import Plan, list_assumptions, make_plan
from tool.plan.routes import GATED, OLDEST_SM, OPTIONS, OVERRIDE, Route, options, route

__all__ = [
    "FORMATS",
    "GATED",
    "GIB",
    "OLDEST_SM",
    "OPTIONS",
    "OVERRIDE",
    "Cards",
    "Layout",
    "Model",
    "Plan",
    "Reserve",
    "Route",
    "Stage",
    "find_model",
    "list_assumptions",
    "make_plan",
    "options",
    "parse_gpus",
    "route",
]
