"""What a trained model is used for: classes of images, and text that goes on."""
