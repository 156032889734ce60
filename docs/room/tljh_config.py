"""The course on The Littlest JupyterHub: /opt/tljh/config/jupyterhub_config.d/course.py."""

from tljh.normalize import generate_system_username


def course(spawner):
    """Where the link puts a student's own copy of the course, `helpers` included."""
    return f"/home/{generate_system_username('jupyter-' + spawner.user.name)}/course"


c.Spawner.environment.update(  # noqa: F821
    {
        "HELPERS_MODELS": "/opt/models",  # one folder for all, which students can only read
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": course,
    }
)
