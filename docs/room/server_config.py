"""Every student's JupyterLab: `make workshop` puts this file where all of them read it."""

import os
from pathlib import Path

c = get_config()  # noqa: F821

c.KernelManager.transport = "ipc"  # sockets in the student's own folder: on TCP others could try the ports
c.MappingKernelManager.cull_idle_timeout = 3600  # seconds: a kernel that nobody uses keeps 0.6 GB
c.MappingKernelManager.cull_interval = 300
c.MappingKernelManager.cull_connected = False  # a page that is open keeps its kernel
# Which notebooks are trusted is kept outside the home folder: with a full disk, a database there cannot even be read.
c.NotebookNotary.db_file = str(Path(os.environ["JUPYTER_RUNTIME_DIR"]) / "signatures.db")
c.LabApp.extension_manager = "readonly"
c.ServerApp.quit_button = False
c.FileContentsManager.delete_to_trash = False
c.ResourceUseDisplay.track_cpu_percent = False
c.LanguageServerManager.autodetect = False  # it starts npm to look for language servers, at each start
