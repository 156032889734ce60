# Git runs this when the student and the teacher have both changed a notebook: lines of two notebooks cannot be mixed.
# The student's page stays, which is what git has put in its place already. The teacher's goes beside it.
# $1: a file with the teacher's version; $2: the notebook's path in the course.
cp -- "$1" "${2%.ipynb}.teacher.ipynb" || true
