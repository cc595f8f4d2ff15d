"""What is done with a trained model: masks for photographs, exports."""
