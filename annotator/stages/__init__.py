"""The steps an image takes through a worker: fetch, decode, device, encode."""
