"""From raw head maps to detections: decode, then suppress. NumPy or torch, the same lines.

Candidates          boxes xyxy, scores and class ids of one image
decode_candidates   maps -> the candidates above a threshold (the run-time path)
decode_all          maps -> every row decoded (parity, training, ensembles)
NMS, suppress       candidates -> survivors, by one of eight kinds of suppression
"""

from scaledyolo.postprocess.candidates import Candidates
from scaledyolo.postprocess.decode import decode_all, decode_candidates
from scaledyolo.postprocess.nms import NMS, suppress

__all__ = ["NMS", "Candidates", "decode_all", "decode_candidates", "suppress"]
