"""`python -m mnist_flax.demo`: a page to draw on that shows what the network sees and says."""

import argparse
import contextlib
import re
import socket
import threading
import webbrowser
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, use_compilation_cache
from mnist_flax.errors import require


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "demo",
        "Open a page to draw digits on, which shows what the network sees and says. Ctrl-C ends it.",
        "--checkpoint runs/mnist_training",
    )
    parser.add_checkpoint("--checkpoint")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 to let others in; default: %(default)s"
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        type=_host_name,
        metavar="NAME",
        help="another name by which the page is reached, such as a proxy's; may be repeated",
    )
    parser.add_argument("--port", type=int, help="default: 8000, or a free one if it is taken")
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    return parser.parse_args(arguments)


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name such as digits.example.org")
    return text


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    for package in ("starlette", "uvicorn"):
        require(package, "to serve the page")

    from mnist_flax.inference.classifier import load
    from mnist_flax.views.app import create_app
    from mnist_flax.views.page import describe
    from mnist_flax.views.server import create_server, listen

    use_compilation_cache()
    network = load(options.checkpoint)
    name = str(options.checkpoint or "the shipped weights")
    with listen(options.host, options.port) as listener:
        own_name = socket.gethostname()
        app = create_app(
            network, name, names=(options.host, own_name, f"{own_name}.local"), allowed_hosts=options.allowed_host
        )
        host = own_name if options.host in ("0.0.0.0", "::") else options.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        def announce() -> None:
            print(f"{name}: {describe(network)}\n{url} (Ctrl-C ends it)", flush=True)
            if not options.no_browser:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        with contextlib.suppress(KeyboardInterrupt):
            create_server(app, announce).run(sockets=[listener])


if __name__ == "__main__":
    main()
