"""Preregistered study: does mutual information help beyond averaging and soft targets?"""
