"""The room, setting by setting. `make workshop` starts JupyterHub with this file; change what you like and start again.

Everything that `make workshop` is told (USERS, ADDRESS, PORT, CODE, CERT, KEY, MEMORY, CPUS) arrives here as a
variable of the environment whose name begins with ROOM_.
"""

import os
import sys
from pathlib import Path

HERE = Path(os.environ["ROOM_SOURCES"])
sys.path.insert(0, str(HERE))

from servers import StudentServer  # noqa: E402
from signup import TEACHER, SignUp  # noqa: E402

c = get_config()  # noqa: F821
room, state = Path(os.environ["ROOM_FOLDER"]), Path(os.environ["ROOM_STATE"])
ports = {name: int(os.environ[f"ROOM_{name}_PORT"]) for name in ("HUB", "PROXY", "WHERE")}

# ---------------------------------------------------------------- who may come in
c.JupyterHub.authenticator_class = SignUp
c.SignUp.code = os.environ["ROOM_CODE"]
c.SignUp.teachers_password = os.environ["ROOM_TEACHERS_PASSWORD"]
c.SignUp.most = int(os.environ["ROOM_USERS"])
c.SignUp.file = str(state / "students.json")
c.SignUp.homes = str(room / "homes")

# ---------------------------------------------------------------- what each student gets
c.JupyterHub.spawner_class = StudentServer
c.Spawner.mem_limit = os.environ["ROOM_MEMORY"]  # such as 3G; what needs more is ended, and nobody else notices
c.Spawner.cpu_limit = float(os.environ["ROOM_CPUS"])  # processors that one student may use at most
c.Spawner.default_url = "/lab/tree/course/notebooks/00_start_here.ipynb"
c.Spawner.start_timeout = c.Spawner.http_timeout = 600  # seconds: a whole class begins at once
c.Spawner.environment = {
    "OMP_NUM_THREADS": os.environ["ROOM_THREADS"],  # processors divided by students
    "TOKENIZERS_PARALLELISM": "false",
    "HELPERS_MODELS": os.environ["ROOM_MODELS"],  # one folder for all, which nobody can write to
    "HF_HUB_OFFLINE": "1",
    "GIT_CONFIG_SYSTEM": str(room / "git" / "config"),
    "ROOM_COURSE": f"file://{room / 'git' / 'course.git'}",
    "ROOM_PRIVATE": str(room / "private"),
    "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
}
c.Spawner.env_keep = []  # nothing of the teacher's own environment

# ---------------------------------------------------------------- where it can be reached
# The proxy is the only door; what stands behind it listens on this machine alone.
c.JupyterHub.bind_url = os.environ["ROOM_URL"]
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{ports['HUB']}"
c.ConfigurableHTTPProxy.should_start = False  # room.py starts it, so that it outlives the hub
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{ports['PROXY']}"
c.ConfigurableHTTPProxy.auth_token = os.environ["CONFIGPROXY_AUTH_TOKEN"]

# ---------------------------------------------------------------- what the hub keeps
c.JupyterHub.db_url = f"sqlite:///{state / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(state / "cookie-secret")
c.JupyterHub.cleanup_servers = False  # students go on working while the hub is away
c.JupyterHub.last_activity_interval = 30  # seconds: how soon a proxy that started again knows the way to everyone
c.JupyterHub.shutdown_on_logout = False
c.JupyterHub.concurrent_spawn_limit = 0  # no limit: a class starts at once, and the hub would turn the eleventh away
c.JupyterHub.active_server_limit = 0

# ---------------------------------------------------------------- helpers of the hub, and who may do what
c.JupyterHub.services = [
    {
        "name": "where",
        "url": f"http://127.0.0.1:{ports['WHERE']}",
        "api_token": os.environ["ROOM_WHERE_TOKEN"],
        "oauth_no_confirm": True,
    },
    {"name": "culler", "api_token": os.environ["ROOM_CULLER_TOKEN"]},
]
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "access:services!service=where"]},
    {
        "name": "teacher",
        "scopes": ["admin-ui", "list:users", "read:users", "servers", "read:hub", "access:services!service=where"],
        "users": [TEACHER],
    },
    {
        "name": "culler",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["culler"],
    },
]
