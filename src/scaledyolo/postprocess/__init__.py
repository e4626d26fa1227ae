"""From raw head maps to detections: decode, then suppress. NumPy or torch, the same lines.

Candidates          boxes xyxy, scores and class ids of one image
decode_candidates   maps -> the candidates above a threshold (the run-time path)
decode_all          maps -> every row decoded (parity, training)
NMS, suppress       candidates -> survivors, by one of eight kinds of suppression
merge_views         candidates of several views of one image -> survivors, suppressed together or fused
"""

from scaledyolo.postprocess.candidates import Candidates
from scaledyolo.postprocess.decode import decode_all, decode_candidates
from scaledyolo.postprocess.fusion import Merge, merge_views
from scaledyolo.postprocess.nms import NMS, suppress

__all__ = ["NMS", "Candidates", "Merge", "decode_all", "decode_candidates", "merge_views", "suppress"]
