"""A study in a few lines of Python: load it, look at its trials, measure another setting, write what it recommends.

Responsible for what people do with a finished or running study from a notebook or a script. Nothing here is stored in
the study. May assume that its results and its calibration cache are where its workers kept them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.deploy.choosing import choose
from hpo.deploy.deploy import Chosen, Written, deploy
from hpo.report.caption import FigureKey
from hpo.report.charts import chart_data
from hpo.report.export import trials_frame
from hpo.study.bench import stored_bench_plan
from hpo.study.choosing import BEST, RECOMMENDED, require_same_bench
from hpo.study.finding import find_study
from hpo.study.record import StudyRecord
from hpo.verdict.importance import Importances
from hpo.verdict.ranking import SizeClassRanking
from hpo.verdict.recommendation import Recommendation
from hpo.verdict.snapshot import Study, read
from hpo.workers.measuring import measure_all
from hpo.workers.planning import Planning, plan_of
from objectives.budget import allocate, parse_budget
from objectives.evaluation import load_bench
from objectives.export.formats import DEFAULT_FORMAT
from objectives.plan_files import plan_of_rows, plan_rows
from objectives.progress import silent
from objectives.sensitivity import measured_plan
from objectives.text.sequences import Sequences
from objectives.trial import Bench, TrialResult
from quant.plan import Plan
from storage.paths import Paths
from storage.studies.opening import chosen_url, open_to_read

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True)
class LoadedStudy:
    """A study as it stood when it was loaded.

    Attributes:
        study: Everything that is stored of it, and its ranking.
        paths: Where its results and its calibration cache are.
        device: Where models are run: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    study: Study
    paths: Paths
    device: str

    @property
    def record(self) -> StudyRecord:
        """Return everything that is stored of it."""
        return self.study.record

    @property
    def rankings(self) -> Sequence[SizeClassRanking]:
        """Return its rankings, one for each size class."""
        return self.study.rankings

    @property
    def recommendation(self) -> Recommendation | None:
        """Return what it recommends and why; None before a trial is complete."""
        return self.study.recommendation

    def trials(self) -> "pd.DataFrame":
        """Make a table of one row per trial, with types: the columns of `trials.csv`."""
        return trials_frame(self.record)

    @property
    def importances(self) -> Importances:
        """Compute each hyperparameter's share of the outcome with its interval; seconds for many trials."""
        return self.study.importances

    def figure(self, key: FigureKey) -> "go.Figure":
        """Draw one of the report's figures, by its anchor there: `forest`, `bits`, `history`, `alpha`, ...

        Raises:
            KeyError: If there is no such figure.
        """
        from hpo.report.figures import figures

        return figures(key, chart_data(self.study))[0][1]

    def measure(self, **changes: Any) -> TrialResult:
        """Measure the setting of the trial of least value with these fields changed, on the tuning text.

        Statistics come from the study's calibration cache, and what was measured before is not measured again.

        Raises:
            InputError: If the setting does not suit the model, or model or text are not the study's any more.
        """
        best, _ = choose(self.study, BEST)
        assert best.setting is not None
        bench, tuning = self._bench
        setting = replace(best.setting, **changes)
        planning = Planning(bench=bench, store=self.study.store, space=self.record.contract.space, progress=silent)
        return measure_all(bench, self.study.store, [setting], [tuning], silent, planning.plan)[0][0]

    def plan(self, budget: str | None = None, trial: str = RECOMMENDED) -> "pd.DataFrame":
        """Make a table of the setting of each Linear, to be changed and handed to `measure_plan` or `quantize`.

        Args:
            budget: What bits are allocated under, as `4.25` bits per weight or `110MB`; None for the trial's setting.
            trial: Whose setting, or recipe, it is.

        Raises:
            InputError: If there is no such trial, or the budget cannot be allocated.
        """
        import pandas as pd

        chosen, _ = choose(self.study, trial)
        assert chosen.setting is not None
        bench, _ = self._bench
        if budget is None:
            plan = plan_of(self.record, chosen, bench, self.study.store, silent)
        else:
            plan = allocate(bench, chosen.setting.recipe, parse_budget(budget), self.study.store, silent).plan
        linears = [(block.index, linear) for block in bench.blocks for linear in block.linears]
        return pd.DataFrame(plan_rows(plan, linears)).convert_dtypes()

    def measure_plan(self, table: "pd.DataFrame") -> TrialResult:
        """Measure the plan of a table on the tuning text; kept, so asking again costs nothing.

        Raises:
            InputError: If the table is no plan, or does not suit the model.
        """
        bench, tuning = self._bench
        return measured_plan(bench, plan_of_table(table), self.study.store, tuning)

    def quantize(
        self,
        directory: str | Path,
        trial: str = RECOMMENDED,
        format: str = DEFAULT_FORMAT,
        plan: "pd.DataFrame | None" = None,
    ) -> Written:
        """Write what the study recommends, its `best` trial or one by its number, as a directory that loads like any.

        A `plan`, a table as `plan()` gives it, is written instead, on the model and the text of the study.

        `compressed-tensors` is INT4 for transformers and vLLM, `dense` the same values in the model's own type; all
        formats are in `objectives.export.formats`.

        Raises:
            InputError: If there is no such trial, or model or text are not the study's any more.
            StorageError: If something is at `directory` already, or the disk is full or refuses.
        """
        bench_plan = stored_bench_plan(self.record.contract, device=self.device)
        if plan is not None:
            own = Chosen(plan=plan_of_table(plan))
            return deploy(bench_plan, own, {format: Path(directory)}, self.paths, silent)[format]
        chosen, notes = choose(self.study, trial)
        assert chosen.setting is not None
        choice = Chosen.of(self.study, chosen)
        written = deploy(bench_plan, choice, {format: Path(directory)}, self.paths, silent)[format]
        return replace(written, notes=[*notes, *written.notes])

    @cached_property
    def _bench(self) -> tuple[Bench, Sequences]:
        bench, (tuning, *_) = load_bench(stored_bench_plan(self.record.contract, device=self.device), self.paths)
        require_same_bench(self.record, bench)
        return bench, tuning


def plan_of_table(table: "pd.DataFrame") -> Plan:
    """Make the plan of a table with a row for each Linear; what is missing has its default.

    Raises:
        InputError: If a row cannot be a setting, or a Linear has several.
    """
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return plan_of_rows([{str(name): value for name, value in row.items()} for row in rows], "the table")


def load(
    study: str | None = None, storage: str | None = None, home: str | Path | None = None, device: str = "auto"
) -> LoadedStudy:
    """Load a study by its name; without one, the study that was begun last.

    Args:
        study: Its name.
        storage: URL of its storage; `$PRAQTUNE_STORAGE`, or the default file, where it is None.
        home: Where results and cache are; `$PRAQTUNE_HOME`, or the default directory, where it is None.
        device: Where models are run.

    Raises:
        InputError: If there is no such study.
        StorageError: If storage or results cannot be read.
    """
    paths = Paths(Path(home)) if home is not None else Paths.default()
    snapshot = read(find_study(open_to_read(chosen_url(storage, paths)), study), paths)
    return LoadedStudy(study=snapshot, paths=paths, device=device)
