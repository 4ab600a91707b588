"""Study of the suite `fast` against AutoAttack."""
