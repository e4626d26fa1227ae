"""What networks cost in time and memory on this machine, measured so that it can be believed.

timing       interleaved rounds: medians whose ratios hold on a busy machine
run          the benchmark: models, sizes and batches one after another, everybody else in turns
entrants     who takes part: engines, precisions, rivals, and the matrix product to compare with
rounds       one network at one size and batch: start everybody, measure, end everybody
process      a candidate seen from outside its process; worker, candidates, jobs: the same from inside
machine      what the machine can do at most: matrix product and copy
roofline     layers: what each achieves and what holds it up, from the times of profile
opencv       a rival: the same network in OpenCV's DNN module; darknet: another, a binary
rows         one row for each way to run a network; report: as tables; plot: as pictures
"""
