"""The table of samplers.

Responsible for the names that a person can choose. Adding a sampler is a module beside `gp` and its line in `SAMPLERS`.
"""

from hpo.search.samplers.gp import Gp
from hpo.search.samplers.grid import Grid
from hpo.search.samplers.optunas import RANDOM, TPE
from hpo.search.samplers.qmc import Qmc
from hpo.search.samplers.sampler import Sampler

SAMPLERS: dict[str, Sampler] = {"gp": Gp(), "tpe": TPE, "random": RANDOM, "qmc": Qmc(), "grid": Grid()}
"""The samplers by name."""
START_UP: Sampler = Qmc()
"""Who chooses for those that learn, before there is something to learn from."""
