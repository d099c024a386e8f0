# A spot pool of L4 GPUs that has no node without callers. Copy this directory, change the region and the zones, and set
# api_cidrs to your address. docs/deploy/aws.md has the commands, the costs and how to destroy it.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.28, < 7"
    }
  }
}

variable "region" {
  type        = string
  description = "Region of everything."
  default     = "eu-central-1"
}

variable "api_cidrs" {
  type        = list(string)
  description = "Your public address as a range, for example [\"203.0.113.7/32\"]."
}

variable "deletion_protection" {
  type        = bool
  description = "Apply with false before terraform destroy."
  default     = true
}

provider "aws" {
  region = var.region
}

module "sie" {
  source = "../.."

  zones               = ["${var.region}a", "${var.region}b"]
  api_cidrs           = var.api_cidrs
  deletion_protection = var.deletion_protection

  pools = {
    l4 = {
      instance_types = ["g6.xlarge", "g6.2xlarge"] # more types: a spot instance is found more often
      max_gpus       = 2
      min_replicas   = 0
      spot           = true
    }
  }
}

output "cluster_name" {
  value = module.sie.cluster_name
}

output "region" {
  value = module.sie.region
}

output "registry" {
  value = module.sie.registry
}

output "models_bucket" {
  value = module.sie.models_bucket
}

output "manifests" {
  value = module.sie.manifests
}

output "values" {
  value = module.sie.values
}
