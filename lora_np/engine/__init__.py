r"""What everything stands on: arrays of any library, devices, autograd, threads and memory."""
