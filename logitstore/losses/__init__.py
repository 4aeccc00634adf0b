"""Losses between a student and stored targets, on the stored form, on the student's device."""

from .joint import JointLoss, joint_kd
from .kd import blank_weights, ctc_kd, hidden_kd, mean_u, rnnt_kd, seq2seq_kd

__all__ = [
    "JointLoss",
    "blank_weights",
    "ctc_kd",
    "hidden_kd",
    "joint_kd",
    "mean_u",
    "rnnt_kd",
    "seq2seq_kd",
]
