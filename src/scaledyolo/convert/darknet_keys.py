"""Every section of a Darknet cfg and every key it may have.

Darknet prints unknown keys and goes on; here they are errors, because a misspelt key (``stirde=2``) silently gives
another network. So this table must hold all keys that any Darknet reads, those that only training uses included.
Source: the option look-ups of the public-domain Darknet (original and AlexeyAB's), and the specification of the extra
sections in the cfgs of PyTorch code bases.
"""

from __future__ import annotations

from collections.abc import Mapping

# Other names of sections that Darknet accepts.
ALIASES: Mapping[str, str] = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "local_avg": "local_avgpool",
    "avg": "avgpool",
    "conn": "connected",
    "soft": "softmax",
    "silence": "empty",
    "lrn": "normalization",
    "deconv": "deconvolutional",
}

# Sections that exist in Darknet but not in this family of detectors, and what they are.
UNSUPPORTED: Mapping[str, str] = {
    "Gaussian_yolo": "the head of Gaussian YOLOv3, which predicts variances",
    "gaussian_yolo": "the head of Gaussian YOLOv3, which predicts variances",
    "detection": "the head of YOLOv1, which is fully connected",
    "iseg": "an instance segmentation head",
    "connected": "a fully connected layer",
    "softmax": "the output of a classifier",
    "cost": "the loss of a classifier",
    "crop": "the input cropping of a classifier",
    "contrastive": "the contrastive loss of a tracker",
    "local": "a locally connected layer",
    "deconvolutional": "a transposed convolution",
    "normalization": "local response normalisation",
    "l2norm": "a normalisation over channels",
    "logistic": "a loss layer",
    "rnn": "a recurrent layer",
    "gru": "a recurrent layer",
    "lstm": "a recurrent layer",
    "crnn": "a recurrent layer",
    "conv_lstm": "a recurrent layer",
    "history": "a stack of video frames",
    "implicit": "a learned constant map of AlexeyAB's Darknet",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NET = _words(
    """
    width height channels inputs batch subdivisions time_steps letter_box
    learning_rate learning_rate_min momentum decay burn_in power max_batches policy steps scales step scale gamma
    seq_scales sgdr_cycle sgdr_mult adam B1 B2 eps ema_alpha loss_scale clip
    max_crop min_crop max_ratio min_ratio center random flip blur gaussian_noise angle aspect saturation exposure hue
    mosaic mosaic_bound mixup cutmix resize_step label_smooth_eps attention adversarial_lr
    contrastive contrastive_jit_flip contrastive_color unsupervised
    track augment_speed sequential_subdivisions equidistant_point badlabels_rejection_percentage
    num_sigmas_reject_badlabels weights_reject_freq try_fix_nan notruth max_chart_loss
    optimized_memory workspace_size_limit_MB dynamic_minibatch use_cuda_graph show_receptive_field
    """
)

# Read for every layer, after its own keys.
_COMMON = _words(
    "clip onlyforward dont_update burnin_update stopbackward train_only_bn dontload dontloadscales learning_rate "
    "numload nobackward stream wait_stream"
)

_HEAD = _words(
    """
    classes num anchors max jitter resize random ignore_thresh truth_thresh iou_thresh map focal_loss max_delta
    counters_per_class label_smooth_eps iou_loss iou_normalizer cls_normalizer obj_normalizer delta_normalizer
    objectness_smooth iou_thresh_kind nms_kind beta_nms scale_x_y new_coords show_details
    """
)

KEYS: Mapping[str, frozenset[str]] = {
    "net": _NET,
    "convolutional": _words(
        """
        filters size stride stride_x stride_y pad padding groups dilation batch_normalize cbn activation antialiasing
        assisted_excitation share_index binary xnor bin_output sway rotate stretch stretch_sway flipped dot angle
        grad_centr reverse coordconv
        """
    ),
    "maxpool": _words(
        "size stride stride_x stride_y padding maxpool_depth out_channels antialiasing maxpool_zero_nonmax"
    ),
    "local_avgpool": _words("size stride stride_x stride_y padding"),
    "avgpool": frozenset(),
    "route": _words("layers groups group_id"),
    "route_lhalf": _words("layers"),
    "shortcut": _words("from activation weights_type weights_normalization"),
    "upsample": _words("stride scale"),
    "yolo": _HEAD
    | _words("mask embedding_layer track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm"),
    "region": _HEAD
    | _words(
        "coords softmax log sqrt rescore thresh classfix absolute bias_match tree background "
        "coord_scale object_scale noobject_scale mask_scale class_scale"
    ),
    "sam": _words("from activation"),
    "scale_channels": _words("from activation scale_wh"),
    "dropout": _words("probability dropblock dropblock_size_rel dropblock_size_abs"),
    "empty": frozenset(),
    "activation": _words("activation"),
    "batchnorm": frozenset(),
    "reorg": _words("stride reverse flatten extra"),
    "reorg3d": _words("stride reverse"),
    "implicit_add": _words("filters mean std atoms"),
    "implicit_mul": _words("filters mean std atoms"),
    "shift_channels": _words("from"),
    "control_channels": _words("from"),
}


def known_keys(kind: str) -> frozenset[str]:
    """Every key that a section of this kind (canonical name, without brackets) may have."""
    return KEYS[kind] if kind == "net" else KEYS[kind] | _COMMON
