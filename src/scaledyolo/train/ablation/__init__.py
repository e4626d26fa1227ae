"""Ablation: any grid of networks and recipes, trained and measured on one data set, with intervals.

grid.py    the grid file, read and checked to the last cell before anything runs
run.py     one cell after the other; what is done stays done
table.py   the cells side by side
"""
