"""What a detector is worth: metrics and reports from arrays of detections and ground truth.

arrays        GroundTruth, Predictions: the seam to data sets and detectors
protocols     which detections a metric sees
coco          the twelve COCO figures (faster-coco-eval)
matching      who found what; average precision from flags
bootstrap     confidence intervals, paired comparison of two models
curves        precision, recall, F1 against confidence; operating points; calibration
breakdown     AP by size and aspect
confusion     confusion matrix
error_types   localisation, confusion, duplicate, background, both, missed (TIDE)
analysis      all of the above in one call
report        one HTML page and one JSON file
"""
