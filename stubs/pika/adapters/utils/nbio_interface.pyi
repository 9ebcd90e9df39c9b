from abc import ABCMeta, abstractmethod

class AbstractIOReference(metaclass=ABCMeta):
    @abstractmethod
    def cancel(self) -> bool: ...
