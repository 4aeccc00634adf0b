"""Teachers: one file a framework. ``base`` holds the protocol that a teacher keeps."""

from .base import Head, Teacher, TeacherSpec

__all__ = ["Head", "Teacher", "TeacherSpec"]
