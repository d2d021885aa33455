"""The tiny model that is refined, as tests of refining itself have it."""

from tests.objectives.refinement.conftest import bench, home

__all__ = ["bench", "home"]
