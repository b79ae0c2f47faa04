"""The table of families, in the order of their ids."""

from g3pt.shapes.family import Family
from g3pt.shapes.furniture import BENCH, CHAIR, LAMP, SHELF, SOFA, STOOL, TABLE

ALL: dict[str, Family] = {family.name: family for family in (CHAIR, STOOL, TABLE, BENCH, SOFA, SHELF, LAMP)}
