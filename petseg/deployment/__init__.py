"""Uses of a trained model: prediction of masks, exports, demo page."""
