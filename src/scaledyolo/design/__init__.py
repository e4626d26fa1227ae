"""Designing a network to a budget on one machine: the paper's section 3 and 4 as a search (`scaledyolo scale`).

candidates   every network of a family by the paper's order: {input size, stages} first, then {depth, width}
profile      what the nodes of one ask of a processor, at any size
capacity     what is put in place of accuracy before anything was trained, and what that does not claim
latency      how long one takes here: coefficients fitted to measurements, and their error on others
device       the measurements: a Detector with the real engine
search       predict all, measure the promising, choose
report       the answer as text, JSON, YAML and a plot
"""
