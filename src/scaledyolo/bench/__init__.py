"""What a network costs in time on this machine, measured so that it can be believed.

timing   interleaved rounds: medians whose ratios hold on a busy machine
"""
