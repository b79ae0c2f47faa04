"""The table of families, in the order of their ids."""

from g3pt.shapes.family import Family
from g3pt.shapes.furniture import BENCH, CHAIR, LAMP, SHELF, SOFA, STOOL, TABLE
from g3pt.shapes.tools import AXE, HAMMER
from g3pt.shapes.vehicles import BOAT, CAR, PLANE, TRUCK
from g3pt.shapes.vessels import MUG, TEAPOT, VASE

_ORDER = (CHAIR, STOOL, TABLE, BENCH, SOFA, SHELF, LAMP, CAR, TRUCK, BOAT, PLANE, MUG, VASE, TEAPOT, HAMMER, AXE)

ALL: dict[str, Family] = {family.name: family for family in _ORDER}
