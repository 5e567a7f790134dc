"""`usl init`: looks at a folder of images and writes a chain for it that suits this machine."""
