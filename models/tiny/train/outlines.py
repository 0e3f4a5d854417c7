"""Outlines as the node Canny draws them (thresholds 0.4 and 0.8), and how far two agree."""
import cv2
import numpy as np


def outline(picture):
    """White edges on black, bytes [128, 128]."""
    return cv2.Canny(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), 102, 204)


def agreement(given, drawn):
    """Intersection over union of two outlines, each line widened to five pixels: an edge may be two pixels off."""
    a, b = (cv2.dilate(e, np.ones((5, 5), np.uint8)) > 0 for e in (given, drawn))
    return float((a & b).sum() / max((a | b).sum(), 1))
