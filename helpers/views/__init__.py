"""Everything that draws: results come in, pictures go out; no function here computes what it shows.

`plot_*` take a result and `ax=None` and return the matplotlib `Axes`. `show_*` return an object
that a notebook displays as a picture and a terminal as text. Explorers and steppers are widgets;
only those run a model, the one they were handed.
"""
