"""What people run: `quantenv train | finetune | validate | tasks | agents | devices`."""
