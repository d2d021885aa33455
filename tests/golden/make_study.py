"""Makes the golden study of the format that studies have now: `python tests/golden/make_study.py`, about two minutes.

A study of the bundled model on little text, with trials of every state that ends, exported into one file beside this
one. Files of earlier formats stay as they are: a study of any format that is read must open. The name of the machine is
left out.
"""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import cli  # noqa: E402
from hpo.study.archive import STUDY  # noqa: E402
from hpo.study.attributes import write_failure  # noqa: E402
from hpo.study.contract import FORMAT  # noqa: E402
from hpo.study.finding import find_study  # noqa: E402
from hpo.study.owner import Owner  # noqa: E402
from hpo.study.record import read_study  # noqa: E402
from hpo.workers.queue import Queue  # noqa: E402
from storage.studies.opening import open_storage  # noqa: E402

NAME, MACHINE = "golden", "elsewhere"
SMALL = ["--space", "original", "--group-size", "64,128", "--n-calib", "16,32", "--n-grid", "5..10"]
TEXT = ["--eval-samples", "24", "--seq-len", "64", "--dtype", "float32"]


def main() -> None:
    """Run the study, add a trial that failed and one that waits, and write the file."""
    target = Path(__file__).parent / f"study-format-{FORMAT}.zip"
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PRAQTUNE_HOME"] = directory
        os.chdir(directory)
        url = f"sqlite:///{directory}/study.db"
        where = ["--study", NAME, "--storage", url]
        assert cli.main(["optimize", *SMALL, *TEXT, "--trials", "12", *where]) == 0
        fail_and_queue(url)
        assert cli.main(["study", "export", NAME, "study.zip", "--storage", url]) == 0
        write_without_names(Path("study.zip"), target)


def fail_and_queue(url: str) -> None:
    """Let one more trial fail, and another one wait."""
    storage = open_storage(url)
    study = find_study(storage, NAME)
    space = read_study(study).contract.space
    queue = Queue(study=study, storage=storage, space=space)
    for fraction in (0.1, 0.9):
        queue.add(space.at([fraction] * len(space.dimensions)), "gp")
    trial = queue.claim()
    assert trial is not None
    write_failure(storage, trial._trial_id, "out-of-memory", "2.0 GB are needed, 1.5 GB are available")


def write_without_names(source: Path, target: Path) -> None:
    """Copy an exported study without the name of the machine that it was made on."""
    owner = Owner.this()
    with zipfile.ZipFile(source) as made, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written:
        for name in made.namelist():
            content = made.read(name)
            if name == STUDY:
                text = content.decode().replace(owner.machine, MACHINE).replace(f'"{owner.host}"', f'"{MACHINE}"')
                content = text.replace(f'"{owner.host}-', f'"{MACHINE}-').encode()
            written.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
