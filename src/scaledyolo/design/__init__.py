"""Designing a network to a budget on one machine: the paper's section 3 and 4 as a search (`scaledyolo scale`).

candidates   every network of a family by the paper's order: {input size, stages} first, then {depth, width}
profile      what the nodes of one ask of a processor, at any size
capacity     what is put in place of accuracy before anything was trained, and what that does not claim
latency      how long one takes here: coefficients fitted to measurements, and their error on others
device       the measurements: a Detector with the real engine
search       predict all, measure the promising, choose
refine       choose by short trainings on the user's images instead: the finalists, and what was found
halving      which of them are trained for how long, within the minutes that are given
trials       the trainings as trials of an Optuna study in a file, taken up again where they stopped
report       the answer as text, JSON, YAML and a plot; refine_report: that of the trainings
"""
