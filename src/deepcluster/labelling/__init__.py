"""What do a few labels give? Which images to label first, and the classifier that comes of them."""
