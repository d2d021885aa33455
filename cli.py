"""The command line: parse arguments, print, map errors to exit codes. No logic.

Responsible for what a person or a program types and reads. Heavy packages are imported by the commands that need
them, so that `--help` answers at once. Exit codes: 0 done, 1 failed while running, 2 wrong usage or input.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from objectives.export.formats import DEFAULT_FORMAT, formats_help

if TYPE_CHECKING:
    import optuna

    from hpo.launch.launch import Fleet
    from hpo.optimize import StudyPlan
    from hpo.report.tables import Table as TextTable
    from hpo.space.space import Space
    from hpo.verdict.snapshot import Study
    from objectives.evaluation import BenchPlan, Row
    from objectives.text.sequences import TextPlan
    from quant.setting import Setting
    from storage.paths import Paths

PIPE_WIDTH = 200
BUNDLED_LENGTH, HUB_LENGTH = 256, 512
DEFAULT_TRIALS = 40
PRUNE_ERROR, FIRST_LOOK = 0.05, 8
SECOND_DATA = {"bundled:docstrings": "bundled:topics", "c4": "wikitext2", "wikitext2": "c4"}
BUNDLED_DATA, HUB_DATA = "bundled:docstrings,bundled:topics", "c4"

EVALUATE_EXAMPLES = """examples:
  %(prog)s                                        the bundled model: full precision, rtn and the V2 presets
  %(prog)s --model org/name --eval-data c4,wikitext2
  %(prog)s --model ./dir --calib-data calib.txt --eval-data eval.jsonl.gz \\
      --method gwh-praq-v2 --beta 0.3 --tau 2.5 --group-size 64 --json rows.json
"""
OPTIMIZE_EXAMPLES = """examples:
  %(prog)s                                        a study of the bundled model
  %(prog)s --trials 100                           go on with it
  %(prog)s --model org/name --calib-data wikitext2 --eval-data c4 --group-size 64,128 --trials 60 --study mine
  %(prog)s --model ./dir --eval-data eval.txt --beta 0.1..0.6 --tau 2 --n-calib 128 --storage sqlite:///study.db
  %(prog)s --method praq-mixed --keep-ratio 0.05..0.2 --tau-risk=-5..-1 --beta-risk 3
  %(prog)s --presets-only --json presets.json     the four presets and the references, ranked
  %(prog)s --devices auto --trials 200 --storage @/run/secrets/storage     one worker per GPU
"""
QUANTIZE_EXAMPLES = """examples:
  %(prog)s --method gw-awq --group-size 64 --output-dir awq-64
  %(prog)s --model org/name --calib-data wikitext2 --method gwh-praq-v2 --beta 0.3 --tau 2.5 --output-dir ./v2
  %(prog)s --study mine --output-dir ./best       the best trial, as the study measured it
  %(prog)s --study mine --format packed --output-dir ./best-int4    as INT4 that transformers and vLLM load
  %(prog)s --study mine --trial 17 --storage sqlite:///study.db --output-dir ./trial-17
"""
COMPARE_EXAMPLES = """examples:
  %(prog)s                                        every method on the bundled model, two data sets
  %(prog)s --methods rtn,gw-awq,gwh-praq-v2 --model org/name --datasets c4,wikitext2 --group-size 64
  %(prog)s --methods all --study mine --csv rows.csv --json rows.json --plots ./comparison
  %(prog)s --methods gw-awq --models gptq=./my-gptq,autoround=./my-autoround --model org/name
"""
STUDY_EXAMPLES = """examples:
  %(prog)s                                        the study that was begun last
  %(prog)s --study mine --storage sqlite:///study.db
"""
STUDY_GROUP_EXAMPLES = """examples:
  %(prog)s ls
  %(prog)s export mine mine.zip
  %(prog)s import mine.zip --storage postgresql://user@host/studies
"""
STUDY_ACTION_EXAMPLES = {
    "ls": """examples:
  %(prog)s
  %(prog)s --storage postgresql://user@host/studies --json
""",
    "rm": """examples:
  %(prog)s mine
  %(prog)s mine --force                           even if workers are at it
""",
    "export": """examples:
  %(prog)s mine mine.zip
""",
    "import": """examples:
  %(prog)s mine.zip --storage postgresql://user@host/studies
  %(prog)s mine.zip --as copy
""",
    "repair": """examples:
  %(prog)s                                        every study of the storage
  %(prog)s mine --storage journal:studies.log     the line of a writer that died is cut off
""",
    "retry": """examples:
  %(prog)s mine                                   then go on with `optimize --study mine`
""",
    "upgrade": """examples:
  %(prog)s --storage sqlite:///study.db           after Optuna was updated
""",
}
STATUS_EXAMPLES = """examples:
  %(prog)s                                        the study that was begun last
  %(prog)s --watch                                again and again, until Ctrl-C
  %(prog)s --study mine --storage sqlite:///study.db --json
"""
DASHBOARD_EXAMPLES = """examples:
  %(prog)s                                        every study of the default storage, on http://127.0.0.1:8080/
  %(prog)s --storage sqlite:///study.db --port 8081
  ssh -L 8080:127.0.0.1:8080 HOST                 see it from another machine: it has no password of its own
"""
CALIBRATE_EXAMPLES = """examples:
  %(prog)s                                        the bundled model, 16 to 128 samples
  %(prog)s --model org/name --calib-data wikitext2 --sizes 64,128,512
"""
CACHE_LS_EXAMPLES = """examples:
  %(prog)s
  %(prog)s --json entries.json
"""
CACHE_VERIFY_EXAMPLES = """examples:
  %(prog)s
  %(prog)s --cache /shared/praqtune
"""
CACHE_RM_EXAMPLES = """examples:
  %(prog)s KEY [KEY ...]                          keys as `cache ls` shows them
  %(prog)s --all
"""
CACHE_EXAMPLES = """examples:
  %(prog)s ls
  %(prog)s verify --json -
  %(prog)s rm KEY [KEY ...]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    level = logging.ERROR if options.quiet else logging.WARNING
    logging.basicConfig(format="praqtune: %(message)s", level=level)
    for library in ("huggingface_hub", "transformers", "datasets", "httpx2"):
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("praqtune: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except Exception as error:
        code = _exit_code(error)
        if code is None or options.debug:
            raise
        print(f"praqtune: {error}", file=sys.stderr)
        return code
    return 0


def _exit_code(error: Exception) -> int | None:
    """2 for what the user can change in the command, 1 for what failed while running, None for our mistakes."""
    from objectives.errors import InputError, RunError
    from quant.errors import QuantizationError
    from storage.errors import AddressError, StorageError

    if isinstance(error, InputError | QuantizationError | AddressError):
        return 2
    return 1 if isinstance(error, RunError | StorageError) else None


# Commands


def _evaluate(options: argparse.Namespace) -> None:
    from hpo.terminal import progress_display
    from objectives.evaluation import evaluate, lay_out
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    settings = _settings(options)
    plan = _bench_plan(options, max((setting.n_calib for setting in settings), default=1))
    rows: list[dict[str, object]] = []
    with progress_display(options.quiet) as progress:
        laid_out = lay_out(plan, _paths(options), progress)
        for row in evaluate(laid_out, settings, progress):
            rows.append(_row(row))
    notes = laid_out.notes
    _output(options, {"rows": rows, "notes": notes}, _evaluation_table(rows), notes)


def _quantize(options: argparse.Namespace) -> None:
    from hpo.deploy.deploy import Chosen, deploy
    from hpo.study.choosing import BEST, chosen_trial, study_flags
    from hpo.terminal import progress_display
    from hpo.verdict.snapshot import read_ranked_if_possible
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    paths, notes = _paths(options), list[str]()
    setting = _one_setting(options)
    if setting is None:
        with _study(options) as found:
            study = read_ranked_if_possible(found, paths)
        contract = study.record.contract
        trial, notes = chosen_trial(study.record, options.trial or BEST)
        assert trial.setting is not None
        chosen = Chosen(setting=trial.setting, study=study, trial=trial)
        plan = _study_bench_plan(options, study_flags(contract), contract["calibration"]["sequences"])
    else:
        chosen = Chosen(setting=setting)
        plan = _bench_plan(_with_defaults(options, {}), setting.n_calib)
    with progress_display(options.quiet) as progress:
        written = deploy(plan, chosen, Path(options.output_dir), options.format, paths, progress)
    record = written.record
    facts = {"directory": str(written.directory), **record, "disk_bytes": written.disk_bytes}
    table = _table("", "")
    for name, text in (
        ("written to", str(written.directory)),
        ("method", chosen.setting.label()),
        ("bits per weight", f"{record['bits_per_weight']:.3f}"),
        *_proof_rows(record),
        ("MB when packed", f"{record['model_bytes'] / 1e6:.2f}"),
        (f"MB on disk, {record['weights']}", f"{written.disk_bytes / 1e6:.2f}"),
    ):
        table.add_row(name, text)
    notes = [*notes, *written.notes]
    _output(options, {**facts, "notes": notes}, table, notes)


def _proof_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What only a packed model has: bits in its file, and what it scores there against what was measured."""
    if "proof" not in record:
        return []
    proof = record["proof"]
    return [
        ("bits per weight, in the file", f"{record['stored_bits_per_weight']:.3f}"),
        ("perplexity, measured", f"{proof['measured']:.4f} on {proof['sequences']} sequences of {proof['source']}"),
        ("perplexity, reloaded", f"{proof['packed']:.4f} in a fresh process"),
    ]


def _compare(options: argparse.Namespace) -> None:
    from hpo.comparison.compare import compare
    from hpo.comparison.export import comparison_json, rows_csv
    from hpo.comparison.plan import ComparePlan, method_settings, model_directories
    from hpo.comparison.tables import pair_note, tables
    from hpo.study.choosing import BEST, chosen_trial
    from hpo.study.record import read_study
    from hpo.terminal import progress_display
    from objectives.model.memory import keep_freed_memory
    from storage.files import write_file

    keep_freed_memory()
    settings = method_settings(options.methods, _given_setting(options))
    models = model_directories(options.models) if options.models else {}
    study, samples = None, [setting.n_calib for setting in settings]
    if options.study:
        with _study(options) as found:
            study = read_study(found)
        best, _ = chosen_trial(study, BEST)
        samples += [best.setting.n_calib] if best.setting else []
    plan = ComparePlan(bench=_bench_plan(options, max(samples)), settings=settings, models=models, study=study)
    with progress_display(options.quiet) as progress:
        comparison = compare(plan, _paths(options), progress)
    notes = [*(choice.sentence for choice in comparison.choices), pair_note(comparison), *comparison.notes]
    if options.csv:
        write_file(Path(options.csv), rows_csv(comparison).encode())
    if options.plots:
        # Imported here: matplotlib takes a second.
        from hpo.comparison.page import write_page

        notes.append(f"page: {write_page(comparison, Path(options.plots))}")
    shown = [_printed(table) for table in tables(comparison)]
    _output(options, comparison_json(comparison), None, notes, shown)


def _optimize(options: argparse.Namespace) -> None:
    from hpo.optimize import optimize
    from hpo.study.events import Notice
    from hpo.study.finding import find_study
    from hpo.terminal import study_display
    from hpo.together import optimize_together
    from hpo.verdict.snapshot import read
    from hpo.workers.worker import Budget
    from objectives.model.memory import keep_freed_memory
    from storage.studies.opening import limits as storage_limits
    from storage.studies.opening import open_storage, storage_errors

    keep_freed_memory()
    paths = _paths(options)
    plan = _study_plan(options)
    deadline = math.inf if options.timeout is None else monotonic() + options.timeout
    budget = Budget(trials=options.trials, deadline=deadline)
    url, fleet = _storage_url(options), _fleet(options)
    with storage_errors(url), study_display(options.quiet, options.json == "-") as (listen, progress):
        for line in storage_limits(url):
            listen(Notice(text=f"note: {line}"))
        if fleet is None:
            study = optimize(plan, open_storage(url), paths, budget, listen, progress, options.worker_name)
        else:
            notes = optimize_together(plan, url, paths, fleet, budget, listen)
            study = read(find_study(open_storage(url), plan.name), paths)
            study = replace(study, notes=[*study.notes, *notes])
    _conclude(options, study, None if plan.presets_only else _report_directory(options, study))


def _status(options: argparse.Namespace) -> None:
    from hpo.study.record import read_study
    from hpo.study.status import summary

    with _study(options) as study:
        if options.watch is not None:
            _watch(options, lambda: summary(read_study(study)))
            return
        facts = summary(read_study(study))
    _output(options, facts, _status_table(facts), [])


def _watch(options: argparse.Namespace, look: Callable[[], dict[str, Any]]) -> None:
    """Show a study's standing until Ctrl-C: renewed on a terminal, a line whenever it changes elsewhere."""
    from objectives.errors import InputError

    if options.json or not options.watch > 0:
        raise InputError("--watch takes seconds above 0 and goes without --json; call status --json again instead")
    console = Console(highlight=False)
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(_status_table(look()), console=console, auto_refresh=False) as live:
                while True:
                    sleep(options.watch)
                    live.update(_status_table(look()), refresh=True)
        said = ""
        while True:
            line = _status_line(look())
            if line != said:
                print(line, flush=True)
            said = line
            sleep(options.watch)


def _dashboard(options: argparse.Namespace) -> None:
    from hpo.dashboard.serve import serve
    from hpo.terminal import say
    from storage.studies.opening import open_storage, shown, storage_errors

    url = _storage_url(options)
    with storage_errors(url):
        storage = open_storage(url)
    serve(storage, _paths(options), shown(url), options.host, options.port, say)


def _show(options: argparse.Namespace) -> None:
    from hpo.report.export import study_json
    from hpo.verdict.snapshot import read

    with _study(options) as found:
        study = read(found, _paths(options))
    _output(options, study_json(study), None, [*study.notes, *_verdicts(study)], _ranking_tables(study))


def _report(options: argparse.Namespace) -> None:
    from hpo.verdict.snapshot import read

    with _study(options) as found:
        study = read(found, _paths(options))
    _conclude(options, study, _report_directory(options, study))


def _study_ls(options: argparse.Namespace) -> None:
    from hpo.workers.administration import list_studies

    with _storage(options) as storage:
        found = list_studies(storage)
    table = _table("study", "model", "trials", "best perplexity")
    for one in found:
        trials = ", ".join(f"{count} {state.lower()}" for state, count in one.trials.items())
        best = "-" if one.best is None else f"{one.best:.3f}"
        table.add_row(one.name, one.model or "(not made by praqtune)", trials or "-", best)
    _output(options, {"studies": [one.as_dict() for one in found]}, table, [f"{len(found)} studies"])


def _study_rm(options: argparse.Namespace) -> None:
    from hpo.study.finding import find_study
    from hpo.workers.administration import remove_study

    with _storage(options) as storage:
        remove_study(find_study(storage, options.study), storage, options.force)
    _output(options, {"removed": options.study}, None, [f"study {options.study} is removed; its results are kept"])


def _study_export(options: argparse.Namespace) -> None:
    from hpo.study.archive import export_study
    from hpo.study.finding import find_study
    from storage.results import ResultStore

    with _storage(options) as storage:
        count = export_study(
            find_study(storage, options.study), ResultStore(_paths(options).results), Path(options.file)
        )
    notes = [f"study {options.study} with {count} results is in {options.file}"]
    _output(options, {"study": options.study, "file": options.file, "results": count}, None, notes)


def _study_import(options: argparse.Namespace) -> None:
    from hpo.study.archive import import_study
    from storage.results import ResultStore

    with _storage(options) as storage:
        study = import_study(storage, ResultStore(_paths(options).results), Path(options.file), options.as_name)
    facts = {"study": study.study_name, "trials": len(study.trials)}
    _output(options, facts, None, [f"study {study.study_name} is imported with {facts['trials']} trials"])


def _study_repair(options: argparse.Namespace) -> None:
    from hpo.study.finding import find_study
    from hpo.terminal import say
    from hpo.workers.administration import repair_study
    from storage.studies.opening import heal

    cut = heal(_storage_url(options))
    notes = [f"{cut} bytes of a line without an end were cut off the journal"] if cut else []
    repaired = []
    with _storage(options) as storage:
        names = [options.study] if options.study else _names(storage)
        for name in names:
            for number, became in repair_study(find_study(storage, name), storage, say):
                repaired.append({"study": name, "trial": number, "became": became})
                notes.append(f"study {name}, trial {number}: {became}")
    _output(options, {"cut_bytes": cut, "repaired": repaired}, None, notes or ["nothing had to be repaired"])


def _names(storage: "optuna.storages.BaseStorage") -> list[str]:
    from hpo.workers.administration import list_studies

    return [one.name for one in list_studies(storage) if one.model is not None]


def _study_retry(options: argparse.Namespace) -> None:
    from hpo.study.finding import find_study
    from hpo.workers.administration import retry_failed

    with _storage(options) as storage:
        numbers = retry_failed(find_study(storage, options.study), storage)
    notes = [f"{len(numbers)} failed trials are queued again; go on with `optimize`"]
    _output(options, {"study": options.study, "retried": numbers}, None, notes)


def _study_upgrade(options: argparse.Namespace) -> None:
    from storage.studies.opening import shown, upgrade

    url = _storage_url(options)
    version = upgrade(url)
    _output(options, {"version": version}, None, [f"the tables of {shown(url)} are of version {version}"])


def _calibrate(options: argparse.Namespace) -> None:
    from hpo.terminal import progress_display
    from objectives.evaluation import lay_out
    from objectives.model.memory import keep_freed_memory

    keep_freed_memory()
    sizes = sorted(_numbers(options.sizes, "--sizes"))
    plan = _bench_plan(options, sizes[-1])
    started = monotonic()
    with progress_display(options.quiet) as progress:
        # The evaluation text is read too: the same documents are left out as in a study, and the number type is the
        # one that the study will compute in.
        laid_out = lay_out(plan, _paths(options), progress)
        bench = laid_out.bench
        computed = bench.calibration.ensure(sizes, progress)
    keys = {size: [segment.key for segment in bench.calibration.segments(size)] for size in sizes}
    record = {"model": plan.model.name, "source": plan.calibration.source, "entries": keys, "samples_read": computed}
    record["seconds"] = round(monotonic() - started, 3)
    table = _table("samples", "entries")
    for size, entries in keys.items():
        table.add_row(str(size), " ".join(entries))
    read = f"{computed} samples were read, the others were in the cache"
    _output(options, record, table, [*laid_out.notes, read])


def _cache_ls(options: argparse.Namespace) -> None:
    from storage.cache import TensorCache

    entries = TensorCache(_paths(options)).entries()
    table = _table("key", "MB", "holds")
    for entry in entries:
        table.add_row(entry.key, f"{entry.size / 1e6:.1f}", _words(entry.about))
    records = [{"key": entry.key, "bytes": entry.size, **entry.about} for entry in entries]
    total = sum(entry.size for entry in entries)
    _output(options, {"entries": records}, table, [f"{len(entries)} entries, {total / 1e9:.2f} GB"])


def _cache_verify(options: argparse.Namespace) -> None:
    from objectives.errors import RunError
    from storage.cache import TensorCache

    cache = TensorCache(_paths(options))
    keys = [entry.key for entry in cache.entries()]
    problems = {key: cache.verify(key) for key in keys}
    damaged = {key: found for key, found in problems.items() if found}
    table = _table("key", "state")
    for key in keys:
        table.add_row(key, "; ".join(problems[key]) or "whole")
    records = [{"key": key, "problems": problems[key]} for key in keys]
    _output(options, {"entries": records}, table, [f"{len(keys)} entries, {len(damaged)} damaged"])
    if damaged:
        raise RunError(f"damaged: {', '.join(damaged)}; `cache rm` them, or let the next run compute them again")


def _cache_rm(options: argparse.Namespace) -> None:
    from storage.cache import TensorCache

    cache = TensorCache(_paths(options))
    keys = [entry.key for entry in cache.entries()] if options.all else options.keys
    for key in keys:
        cache.remove(key)
    _output(options, {"removed": keys}, None, [f"{len(keys)} entries removed"])


# From arguments to plans


def _study_plan(options: argparse.Namespace) -> "StudyPlan":
    from hpo.optimize import StudyPlan
    from hpo.search.pruners.registry import Pruning
    from hpo.search.stopping import Stopping

    space = _space(options)
    calibration_sizes = space.sizes("n_calib")
    bench = _bench_plan(options, calibration_sizes[-1])
    bench = replace(bench, calibration=replace(bench.calibration, minimum=calibration_sizes[0]))
    tuning = bench.data[0]
    name = options.study or Path(options.model).name
    return StudyPlan(
        name=f"{name}-presets" if options.presets_only and not options.study else name,
        bench=replace(bench, data=(tuning, *_confirmation_texts(options, tuning))),
        space=space,
        sampler=options.sampler,
        pruning=Pruning(name=options.pruner, error=options.prune_error, first_look=options.first_look),
        stopping=Stopping(converged=options.until == "converged", patience=options.patience),
        max_bits=options.max_bits,
        presets_only=options.presets_only,
        trial_timeout=options.trial_timeout,
    )


def _space(options: argparse.Namespace) -> "Space":
    from hpo.space.space import make_space, read_space_file
    from quant.setting import Setting

    fixed = {name: getattr(options, name) for name in ("method", *FIXED_FLAGS) if getattr(options, name) is not None}
    given = read_space_file(Path(options.space)) if options.space else {}
    searched = (*SEARCHED_FLAGS, *ROW_FLAGS)
    flags = {name: getattr(options, name) for name in searched if getattr(options, name) is not None}
    return make_space(Setting(**fixed), {**given, **flags})


def _confirmation_texts(options: argparse.Namespace, tuning: "TextPlan") -> list["TextPlan"]:
    """Other documents of the tuning text, and a second data set where one is named or known."""
    second = options.confirm_data or SECOND_DATA.get(tuning.source)
    held_out = replace(tuning, part="confirmation", minimum=1)
    return [held_out, *([replace(held_out, source=second)] if second and second != tuning.source else [])]


def _storage_url(options: argparse.Namespace) -> str:
    from storage.studies.opening import chosen_url

    return chosen_url(options.storage, _paths(options))


@contextmanager
def _storage(options: argparse.Namespace) -> "Iterator[optuna.storages.BaseStorage]":
    """The storage that a command is about."""
    from storage.studies.opening import open_storage, storage_errors

    url = _storage_url(options)
    with storage_errors(url):
        yield open_storage(url)


@contextmanager
def _study(options: argparse.Namespace) -> "Iterator[optuna.Study]":
    """The study that a command is about."""
    from hpo.study.finding import find_study

    with _storage(options) as storage:
        yield find_study(storage, options.study)


def _fleet(options: argparse.Namespace) -> "Fleet | None":
    """The workers to start; None where this process is the worker."""
    from hpo.launch.launch import Fleet

    if not (options.workers is not None or options.devices or options.scheduler or options.backend != "loky"):
        return None
    return Fleet(
        workers=options.workers,
        devices=options.devices or options.device,
        backend=options.backend,
        scheduler=options.scheduler,
    )


def _report_directory(options: argparse.Namespace, study: "Study") -> Path:
    return Path(options.out) if options.out else Path("reports") / study.record.name


def _bench_plan(options: argparse.Namespace, calibration_samples: int) -> "BenchPlan":
    from objectives.evaluation import BenchPlan
    from objectives.model.loading import BUNDLED, ModelPlan
    from objectives.text.sequences import TextPlan

    bundled = options.model == BUNDLED
    usual = BUNDLED_LENGTH if bundled else HUB_LENGTH
    length = usual if options.seq_len is None else options.seq_len
    sources = (options.eval_data or (BUNDLED_DATA if bundled else HUB_DATA)).split(",")
    calibration = options.calib_data or sources[0]
    return BenchPlan(
        model=ModelPlan(
            name=options.model,
            revision=options.revision,
            dtype=options.dtype,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        ),
        calibration=TextPlan(
            source=calibration,
            part="calibration",
            count=calibration_samples,
            protocol=options.protocol,
            length=length,
        ),
        data=tuple(
            TextPlan(source=source, part="tuning", count=options.eval_samples, protocol=options.protocol, length=length)
            for source in dict.fromkeys(sources)
        ),
        seed=options.seed,
        max_memory=None if options.max_memory is None else int(options.max_memory * 1e9),
        allow_partial=options.allow_partial,
        allow_partial_groups=options.allow_partial_groups,
    )


def _settings(options: argparse.Namespace) -> list["Setting"]:
    from objectives.model.loading import BUNDLED
    from quant.setting import PRESETS, Setting

    given = _given_setting(options)
    presets = options.presets or (options.model == BUNDLED and options.method is None)
    chosen = [Setting(**{**given, "method": name}) for name in (options.method or "").split(",") if name]
    if not presets:
        if given and not chosen:
            from objectives.errors import InputError

            raise InputError(f"{', '.join(given)} given without --method; add --method gwh-praq-v2, for example")
        return chosen
    values = [{**preset.as_dict(), **given} for preset in PRESETS.values()]
    return [*chosen, Setting(**{**given, "method": "rtn"}), *(Setting(**value) for value in values)]


def _given_setting(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SETTING_FLAGS if getattr(options, name) is not None}


def _one_setting(options: argparse.Namespace) -> "Setting | None":
    """The setting that flags describe; None where it is a study's trial."""
    from objectives.errors import InputError
    from quant.setting import Setting

    given = _given_setting(options)
    of_study = options.study is not None or options.trial is not None
    if of_study and (given or options.method):
        raise InputError("a trial has its own setting; give either --study and --trial, or --method and its parameters")
    if not of_study and not options.method:
        raise InputError("nothing says how to quantize; give --method NAME, or --study NAME")
    return None if of_study else Setting(**{**given, "method": options.method})


def _with_defaults(options: argparse.Namespace, known: dict[str, Any]) -> argparse.Namespace:
    """The options with what was not given: what is known, or the usual value."""
    missing = {
        name: value for name, value in {**options.usual, **known}.items() if getattr(options, name, None) is None
    }
    return argparse.Namespace(**{**vars(options), **missing})


def _study_bench_plan(options: argparse.Namespace, known: dict[str, Any], samples: int) -> "BenchPlan":
    """What a study laid out; flags that are given win over it."""
    if options.model is not None:
        known = {**known, "revision": options.revision}
    whole = _with_defaults(options, known)
    plan = _bench_plan(whole, samples)
    return replace(plan, data=(plan.data[0], *_confirmation_texts(whole, plan.data[0])))


def _paths(options: argparse.Namespace) -> "Paths":
    from storage.paths import Paths

    paths = Paths(Path(options.cache)) if options.cache else Paths.default()
    if not options.allow_shared_cache:
        paths.require_private()
    return paths


def _numbers(text: str, flag: str) -> list[int]:
    from objectives.errors import InputError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of whole numbers; write 16,32,64, for example") from None
    if min(numbers) < 1:
        raise InputError(f"{flag} {text!r} has a number below 1")
    return numbers


# From results to text


def _row(row: "Row") -> dict[str, object]:
    difference = row.difference
    return {
        "dataset": row.dataset,
        "method": row.method,
        "perplexity": row.score.perplexity,
        "mean_nll": row.score.mean_nll,
        "tokens": int(row.score.tokens.sum()),
        "tokens_per_second": float(row.score.tokens.sum()) / row.score_seconds,
        "bits_per_weight": row.bits_per_weight,
        "seconds": row.quantize_seconds + row.score_seconds,
        "model_bytes": row.model_bytes,
        "setting": row.setting.as_dict() if row.setting else None,
        "nll_above_full_precision": None
        if difference is None
        else {"value": difference.value, "low": difference.low, "high": difference.high},
    }


def _evaluation_table(rows: Iterable[dict[str, Any]]) -> Table:
    table = _table("data", "method", "perplexity", "NLL above full", "bits/weight", "MB", "tokens/s", "s")
    for row in rows:
        gap = row["nll_above_full_precision"]
        table.add_row(
            row["dataset"],
            row["method"],
            f"{row['perplexity']:.3f}",
            f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else "-",
            f"{row['bits_per_weight']:.3f}",
            f"{row['model_bytes'] / 1e6:.1f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['seconds']:.1f}",
        )
    return table


def _conclude(options: argparse.Namespace, study: "Study", directory: Path | None) -> None:
    """Print the ranking and the verdicts, and write the report into `directory` where there is one."""
    from hpo.report.export import study_json
    from hpo.report.write import write_report

    notes = [*_verdicts(study), *study.notes]
    if study.record.confirmation:
        notes.insert(0, study.record.confirmation["sentence"])
    if directory is not None:
        notes.append(f"report: {write_report(study, directory)}")
    _output(options, study_json(study), None, notes, _ranking_tables(study))


def _verdicts(study: "Study") -> list[str]:
    """The leading level first: what won, what to use, and what more bits would buy."""
    from hpo.verdict.ranking import frontier_text

    levels, leading = study.ranking, study.lead
    ordered = sorted(levels, key=lambda level: level is not leading)
    lines = [level.verdict() for level in ordered]
    if leading is not None:
        lines.insert(1, leading.recommendation())
    return [*lines, *([frontier_text(levels)] if len(levels) > 1 else [])]


def _ranking_tables(study: "Study") -> list[Table]:
    from hpo.verdict.words import percent_text

    tables = []
    for level in study.ranking:
        table = _table(str(level.size_class), "setting", "perplexity", "above the best", "bits/weight")
        for row in level.rows:
            mark = " *" if row is level.recommended else ""
            table.add_row(
                row.measured.name + mark,
                row.measured.label,
                f"{row.score.perplexity:.3f}",
                "best" if row is level.best else percent_text(row.difference),
                f"{row.measured.bits_per_weight:.3f}",
            )
        tables.append(table)
    return tables


def _status_text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_status_text(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(_status_text(part) for part in value) or "-"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def _status_table(facts: dict[str, Any]) -> Table:
    table = _table("", "")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _status_text(value))
    return table


def _status_line(facts: dict[str, Any]) -> str:
    trials = ", ".join(f"{count} {state.lower()}" for state, count in facts["trials"].items()) or "no trials"
    running = ", ".join(f"trial {one['number']} after {one['sequences_read']} sequences" for one in facts["running"])
    best = "; ".join(f"{size}: {text}" for size, text in facts["best"].items())
    return " | ".join(part for part in (f"{facts['study']}: {trials}", running, best) if part)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


def _printed(table: "TextTable") -> Table:
    """A table of the report for the terminal."""
    printed = _table(table.title, *table.columns[1:])
    for row in table.rows:
        printed.add_row(*row)
    return printed


def _words(about: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items())


def _output(
    options: argparse.Namespace,
    record: dict[str, Any],
    table: Table | None,
    notes: Sequence[str],
    tables: Sequence[Table] = (),
) -> None:
    """Print for people, or write JSON to the file of `--json` (`-` is standard output)."""
    if options.json:
        from storage.files import write_file
        from storage.strict_json import json_text

        if options.json == "-":
            print(json_text(record), end="")
        else:
            write_file(Path(options.json), json_text(record).encode())
    if options.json != "-":
        # A pipe gets whole lines, whatever the width of the terminal it came from.
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
        for one in (*([] if table is None else [table]), *tables):
            console.print(one)
        for note in notes:
            console.print(note, soft_wrap=True)


# Arguments

SEARCHED_FLAGS = ("beta", "tau", "n_grid", "n_calib", "group_size")
FIXED_FLAGS = ("symmetric", "rounding", "scales", "placement")
ROW_FLAGS = ("keep_ratio", "beta_risk", "tau_risk", "noise_factor", "variance_penalty")
SETTING_FLAGS = (*SEARCHED_FLAGS, *FIXED_FLAGS, *ROW_FLAGS)
STUDY_GIVES = ("model", "dtype", "protocol", "eval_samples", "seed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="praqtune", description="Hyperparameter optimization for INT4 quantization of causal language models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    optimize = _command(commands, "optimize", "begin, resume or join a study", OPTIMIZE_EXAMPLES, _optimize)
    _model_flags(optimize)
    _text_flags(optimize)
    _space_flags(optimize)
    _study_flags(optimize, report=True)
    status = _command(commands, "status", "where a study stands", STATUS_EXAMPLES, _status)
    _study_flags(status, report=False)
    status.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="renew it every 2 seconds, or as many"
    )
    for name, summary, run, report in (
        ("show", "everything that is known of a study", _show, False),
        ("report", "write a study's report", _report, True),
    ):
        _study_flags(_command(commands, name, summary, STUDY_EXAMPLES, run), report=report)
    dashboard = _command(commands, "dashboard", "see every study in a browser", DASHBOARD_EXAMPLES, _dashboard)
    dashboard.add_argument("--storage", metavar="URL", help="where the studies are ($PRAQTUNE_STORAGE)")
    dashboard.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    dashboard.add_argument("--port", type=int, default=8080, help="0 takes a free one (default %(default)s)")
    evaluate = _command(commands, "evaluate", "measure perplexity, as it is or quantized", EVALUATE_EXAMPLES, _evaluate)
    _model_flags(evaluate)
    _text_flags(evaluate)
    _method_flags(evaluate)
    _setting_flags(evaluate)
    quantize = _command(commands, "quantize", "write a quantized model directory", QUANTIZE_EXAMPLES, _quantize)
    _model_flags(quantize)
    _text_flags(quantize)
    _setting_flags(quantize)
    _quantize_flags(quantize)
    compare = _command(commands, "compare", "methods and models side by side", COMPARE_EXAMPLES, _compare)
    _compare_flags(compare)
    _model_flags(compare)
    _text_flags(compare, "--datasets")
    _setting_flags(compare)
    calibrate = _command(commands, "calibrate", "fill the calibration cache in advance", CALIBRATE_EXAMPLES, _calibrate)
    _model_flags(calibrate)
    _text_flags(calibrate)
    calibrate.add_argument("--sizes", default="16,32,64,128", help="calibration sizes, separated by commas")
    _study_commands(commands)
    actions = _group(commands, "cache", "list, check or remove calibration entries", CACHE_EXAMPLES)
    _command(actions, "ls", "list entries", CACHE_LS_EXAMPLES, _cache_ls)
    _command(actions, "verify", "read every entry and name damaged files", CACHE_VERIFY_EXAMPLES, _cache_verify)
    remove = _command(actions, "rm", "remove entries", CACHE_RM_EXAMPLES, _cache_rm)
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("keys", nargs="*", default=[], help="keys as `cache ls` shows them", metavar="KEY")
    which.add_argument("--all", action="store_true", help="remove every entry")
    return parser


def _group(commands: Any, name: str, summary: str, examples: str) -> Any:
    """A command that has actions; returns what they are added to."""
    parser = commands.add_parser(
        name, help=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.add_subparsers(required=True, metavar="ACTION")


def _command(
    commands: Any, name: str, summary: str, examples: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", metavar="DIR", help="where calibration is kept (default $PRAQTUNE_HOME)")
    parser.add_argument("--allow-shared-cache", action="store_true", help="accept a directory others may write to")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write JSON to FILE, or print it")
    parser.add_argument("--quiet", action="store_true", help="no progress and no warnings: the result and errors only")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="bundled", help="hub name, directory, or `bundled` (default)")
    group.add_argument("--revision", help="branch, tag or commit of a hub model")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    group.add_argument("--allow-partial", action="store_true", help="accept block weights that stay in 16 bit")
    group.add_argument("--allow-partial-groups", action="store_true", help="accept a partial last group")
    group.add_argument("--max-memory", type=float, metavar="GB", help="for calibration sums; more passes below it")


def _text_flags(parser: argparse.ArgumentParser, *also: str) -> None:
    """`also` are other names of the evaluation text's flag."""
    group = parser.add_argument_group("text")
    group.add_argument("--calib-data", help="calibration text (default: other documents of the evaluation text)")
    group.add_argument(
        *also, "--eval-data", dest="eval_data", help="evaluation text: c4, wikitext2, hub:..., or files, by commas"
    )
    group.add_argument("--protocol", default="packed", help="packed (default) or documents")
    group.add_argument("--seq-len", type=int, help="tokens per sequence (512; 256 for the bundled model)")
    group.add_argument("--eval-samples", type=int, default=64, help="sequences per data set")
    group.add_argument("--seed", type=int, default=0, help="of the split and the order of the text")


def _study_flags(parser: argparse.ArgumentParser, report: bool) -> None:
    group = parser.add_argument_group("study")
    group.add_argument("--study", help="its name (default: the model's; elsewhere the study begun last)")
    _storage_flag(group)
    if report:
        group.add_argument("--out", metavar="DIR", help="where the report goes (default: reports/STUDY)")


def _storage_flag(group: Any) -> None:
    group.add_argument(
        "--storage", metavar="URL", help="sqlite:///FILE, postgresql://..., @FILE with it, ... ($PRAQTUNE_STORAGE)"
    )


def _study_commands(commands: Any) -> None:
    """`study ls|rm|export|import|repair|retry|upgrade`."""
    actions = _group(commands, "study", "list, remove, move or repair studies", STUDY_GROUP_EXAMPLES)
    for name, summary, run in (
        ("ls", "list the studies of a storage", _study_ls),
        ("rm", "remove a study", _study_rm),
        ("export", "write a study with its results into one file", _study_export),
        ("import", "make the study of a file in this storage", _study_import),
        ("repair", "queue again what dead workers left; heal a torn journal", _study_repair),
        ("retry", "queue failed settings again", _study_retry),
        ("upgrade", "bring the tables to the installed Optuna's version", _study_upgrade),
    ):
        parser = _command(actions, name, summary, STUDY_ACTION_EXAMPLES[name], run)
        _storage_flag(parser)
        if name in ("rm", "export", "retry"):
            parser.add_argument("study", metavar="STUDY")
        if name == "repair":
            parser.add_argument("study", metavar="STUDY", nargs="?", help="default: every study")
        if name in ("export", "import"):
            parser.add_argument("file", metavar="FILE")
        if name == "import":
            parser.add_argument("--as", dest="as_name", metavar="NAME", help="another name for it")
        if name == "rm":
            parser.add_argument("--force", action="store_true", help="even if workers are at it")


def _space_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument("--trials", type=int, default=DEFAULT_TRIALS, help="in the whole study (default %(default)s)")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="begin no trial after this")
    group.add_argument("--trial-timeout", type=float, metavar="SECONDS", help="end a trial without progress for this")
    group.add_argument("--sampler", default="gp", help="gp (default), tpe, random, qmc or grid")
    group.add_argument("--pruner", default="paired", help="paired (default), wilcoxon, median, hyperband or none")
    group.add_argument(
        "--prune-error",
        type=float,
        default=PRUNE_ERROR,
        metavar="P",
        help="chance that `paired` gives up a trial as good as the best (default %(default)s)",
    )
    first = "judge a trial after N sequences, 2 N, 4 N, ... (default %(default)s)"
    group.add_argument("--first-look", type=int, default=FIRST_LOOK, metavar="N", help=first)
    until = "stop when ten more trials are not expected to gain more than the paired noise"
    group.add_argument("--until", choices=("converged",), help=until)
    group.add_argument("--patience", type=int, metavar="N", help="stop when N trials in a row improved nothing")
    group.add_argument(
        "--presets-only", action="store_true", help="rank the presets and the references, search nothing"
    )
    group.add_argument("--confirm-data", help="second data set that the winner is confirmed on")
    group = parser.add_argument_group("workers")
    group.add_argument("--workers", type=int, metavar="N", help="processes to start (default: one per --devices)")
    group.add_argument("--devices", help="auto, cpu, or cuda:0,cuda:1,...: one process each, pinned to it")
    group.add_argument("--backend", default="loky", help="who starts them through joblib: loky (default) or dask")
    group.add_argument("--scheduler", metavar="ADDRESS", help="of a running Dask cluster, for --backend dask")
    group.add_argument("--worker-name", metavar="NAME", help="what tables call this process (default HOST-PID)")
    group = parser.add_argument_group("space", "0.3 fixes a hyperparameter, 0.2..0.8 is a range, 32,64 are sizes")
    group.add_argument("--space", metavar="FILE", help="TOML file with the same names and values")
    group.add_argument("--method", help="the method that is searched (default gwh-praq-v2)")
    group.add_argument("--beta", help="blend of saliences (default 0..1)")
    group.add_argument("--tau", help="temperature of the error weights (default 0.1..5)")
    group.add_argument("--n-grid", help="steps of the search over alpha (default 5..40)")
    group.add_argument("--n-calib", help="calibration samples (default 16,32,...,512 as far as there is text)")
    group.add_argument("--group-size", help="inputs that share a scale (default 32,...,256 as far as they suit)")
    group.add_argument("--keep-ratio", help="share of rows in 16 bit, in steps (default 0.05..0.3; mixed methods)")
    group.add_argument("--beta-risk", help="steepness of the risk (default 0.3..30; praq-real and mixed methods)")
    group.add_argument("--tau-risk", help="from where outputs count as active (default -6..0; write --tau-risk=-5..-1)")
    group.add_argument("--noise-factor", help="weight of the noise of rounding in the risk (default 0..10)")
    group.add_argument("--variance-penalty", help="power of the deviation that risk is divided by (default 0..1)")
    group.add_argument("--max-bits", type=float, help="most bits per weight that a setting may cost")
    _grid_flags(group)


def _quantize_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to write")
    group.add_argument("--method", help="rtn, gw-awq, gwh-praq-v2, ...")
    group.add_argument("--study", metavar="S", help="quantize as one of its trials was; gives model and text as well")
    group.add_argument("--trial", metavar="N", help="best (default) or a number")
    group.add_argument("--storage", metavar="URL", help="where the study is ($PRAQTUNE_STORAGE)")
    group.add_argument("--format", default=DEFAULT_FORMAT, help=formats_help())
    group.add_argument("--output-dir", metavar="DIR", required=True, help="must not exist, or be empty")
    # Not given and given as usual differ: what is not given comes from the study.
    usual = {name: parser.get_default(name) for name in STUDY_GIVES}
    parser.set_defaults(**dict.fromkeys(STUDY_GIVES), confirm_data=None, usual=usual)


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to compare, and where to write it")
    group.add_argument("--methods", default="all", help="separated by commas, or all (default)")
    group.add_argument("--models", metavar="NAME=DIR,...", help="ready-made model directories")
    group.add_argument("--study", metavar="S", help="its best trial is a row besides")
    group.add_argument("--storage", metavar="URL", help="where the study is ($PRAQTUNE_STORAGE)")
    group.add_argument("--csv", metavar="FILE", help="write the rows as CSV")
    group.add_argument("--plots", metavar="DIR", help="write a page with pictures")


def _method_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("methods")
    group.add_argument("--method", help="rtn, gw-awq, gwh-praq-v1, gwh-praq-v2, ...; several separated by commas")
    group.add_argument("--presets", action="store_true", help="rtn and the presets of gwh-praq-v2")


def _setting_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("setting")
    group.add_argument("--beta", type=float, help="blend of saliences: 0 is AWQ's, 1 is PRAQ's")
    group.add_argument("--tau", type=float, help="temperature of the error weights")
    group.add_argument("--n-grid", type=int, help="steps of the search over alpha")
    group.add_argument("--n-calib", type=int, help="calibration samples")
    group.add_argument("--group-size", type=int, help="inputs that share a scale")
    group.add_argument("--keep-ratio", type=float, help="share of rows that mixed methods keep in 16 bit")
    group.add_argument("--beta-risk", type=float, help="steepness of the risk that an output is active")
    group.add_argument("--tau-risk", type=float, help="bound on an output from which on it counts as active")
    group.add_argument("--noise-factor", type=float, help="weight of the noise of rounding in that bound")
    group.add_argument("--variance-penalty", type=float, help="power of the deviation that risk is divided by")
    _grid_flags(group)


def _grid_flags(group: Any) -> None:
    zero = group.add_mutually_exclusive_group()
    zero.add_argument("--symmetric", action="store_true", default=None, help="codes around zero (default)")
    zero.add_argument("--asymmetric", dest="symmetric", action="store_false", help="codes with a zero point")
    group.add_argument("--scales", help="foldable (default) or linear")
    group.add_argument("--placement", help="original (default) or structural")
    group.add_argument("--rounding", help="how codes are chosen: nearest (default)")


if __name__ == "__main__":
    sys.exit(main())
