"""Models in the formats of other runtimes, each proven to compute the same.

run             export(model, destination, format=...) -> ExportReport
verify          verify(artefact, against=model) -> VerificationReport
recheck         what can be said without the model: recheck(artefact, reason) -> Recheck
reference       what the model itself answers
origin          the file of the model, recorded and found again
average_precision  AP of raw maps and of end-to-end detections
formats         what can be written, and how
torch_formats   TorchScript and torch.export; needs the train extra
edge_formats    ncnn, tflite and coreml; each needs the extra of its name
compare         maps, boxes and detections of two networks
quantise        a network in 8 bits: quantise_openvino, quantise_onnx, calibration, sensitivity
images          what they are compared on
report          the JSON file beside an artefact
"""

from scaledyolo.export.formats import ELSEWHERE, FORMATS
from scaledyolo.export.quantise import Int8
from scaledyolo.export.report import VerificationReport
from scaledyolo.export.run import ExportReport, export
from scaledyolo.export.verify import verify

__all__ = ["ELSEWHERE", "FORMATS", "ExportReport", "Int8", "VerificationReport", "export", "verify"]
