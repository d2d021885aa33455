"""The dashboard's process: serve the pages, and keep what is on them current.

Responsible for the WSGI server and for one thread that renews every study of the storage; it is the only writer of
notes, graphs and files, so no worker spends time on them and no trial can fail because of them. There is no
authentication: whoever reaches the address can change and delete studies.
"""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import closing

import optuna
import waitress
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from hpo.dashboard.board import Board
from hpo.dashboard.study_page import StudyPage
from hpo.study.attributes import CONTRACT
from hpo.study.contract import require_format
from hpo.workers.interrupts import Interrupts
from objectives.errors import InputError
from storage.artifacts import ArtifactFiles
from storage.paths import Paths

SECONDS_BETWEEN = 4.0
# A page asks for several things at once, and several people may look.
THREADS = 8
MOST_PORT = 65535
OPEN = "anyone who reaches that address can change and delete studies; use 127.0.0.1 and an SSH tunnel instead"

Say = Callable[[str], None]


def serve(storage: BaseStorage, paths: Paths, address: str, host: str, port: int, say: Say) -> None:
    """Serve every study of `storage` until SIGINT or SIGTERM.

    Args:
        storage: Where the studies are.
        paths: Where results and artifacts are: those of the workers.
        address: Of the storage, as it may be shown.
        host: Name or address to listen on.
        port: 0 takes a free one.
        say: Told where it listens and what goes wrong, a line each.

    Raises:
        InputError: If host and port cannot be listened on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("waitress").setLevel(logging.ERROR)
    files = ArtifactFiles(paths.artifacts)
    refresher = Refresher(storage, files, paths, address, say)
    stop = threading.Event()
    thread = threading.Thread(target=refresher.run, args=(stop,), name="refresher", daemon=True)
    with closing(_listen(host, port)) as listening:
        server = waitress.create_server(wsgi(storage, artifact_store=files), sockets=[listening], threads=THREADS)
        say(f"dashboard: {_url(listening)}")
        if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            say(OPEN)
        try:
            with Interrupts().watched():
                thread.start()
                server.run()
        finally:
            stop.set()
            server.close()
            thread.join(SECONDS_BETWEEN)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MOST_PORT:
        raise InputError(f"cannot listen on {host}:{port}: ports are 0 to {MOST_PORT}; choose another --port")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Refresher:
    """Renews the pages of all studies that are ours."""

    def __init__(self, storage: BaseStorage, files: ArtifactFiles, paths: Paths, address: str, say: Say) -> None:
        self._storage, self._files, self._paths = storage, files, paths
        self._address, self._say = address, say
        self._pages: dict[str, StudyPage] = {}
        self._said: dict[str, list[str]] = {}

    def run(self, stop: threading.Event) -> None:
        """Refresh again and again until `stop` is set."""
        while not stop.is_set():
            self.refresh()
            stop.wait(SECONDS_BETWEEN)

    def refresh(self) -> None:
        """Bring every study's page up to date; what fails is said, and the other studies are shown."""
        try:
            names = optuna.get_all_study_names(self._storage)
        except Exception as error:
            self._tell("", [f"the storage cannot be read: {type(error).__name__}: {error}"])
            return
        self._pages = {name: page for name, page in self._pages.items() if name in names}
        for name in names:
            try:
                page = self._page(name)
                if page is not None:
                    page.refresh()
                    self._tell(name, page.problems)
            except Exception as error:
                self._tell(name, [f"the page was not renewed: {type(error).__name__}: {error}"])

    def _page(self, name: str) -> StudyPage | None:
        if name not in self._pages:
            study = optuna.load_study(storage=self._storage, study_name=name)
            if CONTRACT not in study.user_attrs:
                return None
            require_format(study.user_attrs[CONTRACT], name)
            self._pages[name] = StudyPage(Board(study, self._storage, self._files), self._paths, self._address)
        return self._pages[name]

    def _tell(self, name: str, problems: list[str]) -> None:
        """Say what goes wrong once, not every few seconds."""
        for problem in problems:
            if problem not in self._said.get(name, []):
                self._say(f"study {name}: {problem}" if name else problem)
        self._said[name] = list(problems)
