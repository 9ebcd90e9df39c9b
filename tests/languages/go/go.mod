module towerws.example/publish

go 1.19

require (
	github.com/google/uuid v1.6.0
	github.com/rabbitmq/amqp091-go v1.9.0
)
