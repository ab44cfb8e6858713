"""What do a few labels give? Which images to label, and the classifier that comes of them."""
