"""Converts annotations that are not masks (COCO, LabelMe, YOLO, a mask per class) to images, masks and classes.json."""
