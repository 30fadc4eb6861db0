"""Images that are generated, or that torchvision reads."""
