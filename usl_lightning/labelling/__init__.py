"""`usl label`: chosen images in the browser, their labels taken down; labels from and for other programs."""
