#!/bin/sh
# On Kubernetes, the hub starts a student's server with this: `at_home.sh jupyterhub-singleuser …`. The home folder is
# the student's own volume and empty the first time, so the course goes there, and what is there already stays as it is.
set -eu
cp --recursive --no-clobber /opt/course "$HOME"
export PYTHONPATH="$HOME/course" # `helpers` is the student's own copy, wherever a notebook lies
cd "$HOME"
exec "$@"
