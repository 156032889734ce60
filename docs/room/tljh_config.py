"""The course on The Littlest JupyterHub: /opt/tljh/config/jupyterhub_config.d/course.py."""

c.Spawner.environment.update(  # noqa: F821
    {
        "HELPERS_MODELS": "/opt/models",  # one folder for all, which students can only read
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
)
c.Spawner.args = ["--KernelManager.transport=ipc"]  # noqa: F821
