"""Attribution patching: patching's effects estimated by gradients."""
