"""`dashboard`: see every study in a browser.

Responsible for the flags of this command.
"""

from argparse import ArgumentParser, Namespace

from hpo.commands.command import Command
from hpo.commands.flags import add_storage_flag
from hpo.commands.stores import paths_of, storage_url

EXAMPLES = """examples:
  %(prog)s                                        every study of the default storage, on http://127.0.0.1:8080/
  %(prog)s --storage sqlite:///study.db --port 8081
  ssh -L 8080:127.0.0.1:8080 HOST                 see it from another machine: it has no password of its own
"""


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of this command."""
    add_storage_flag(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 takes a free one (default %(default)s)")


def run(parsed: Namespace) -> None:
    """Serve until told to stop."""
    from hpo.dashboard.serve import serve
    from hpo.standard_error import say
    from storage.studies.opening import open_storage, shown, storage_errors

    url = storage_url(parsed)
    with storage_errors(url):
        storage = open_storage(url)
    serve(storage, paths_of(parsed), shown(url), parsed.host, parsed.port, say)


COMMAND = Command(examples=EXAMPLES, add_flags=add_flags, run=run)
