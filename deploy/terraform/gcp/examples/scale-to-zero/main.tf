# A spot pool of L4 GPUs that has no node without callers. Copy this directory, change the region and the zones, and set
# api_cidrs to your address. docs/deploy/gcp.md has the commands, the costs and how to destroy it.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.17, < 8"
    }
  }
}

variable "project_id" {
  type        = string
  description = "Id of your project."
}

variable "region" {
  type        = string
  description = "Region of everything."
  default     = "europe-west4"
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

provider "google" {
  project = var.project_id
  region  = var.region
}

module "sie" {
  source = "../.."

  project_id          = var.project_id
  region              = var.region
  zones               = ["${var.region}-a", "${var.region}-b"]
  api_cidrs           = var.api_cidrs
  deletion_protection = var.deletion_protection

  pools = {
    l4 = {
      machine_type = "g2-standard-8"
      max_nodes    = 2
      min_replicas = 0
      spot         = true
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

output "project_id" {
  value = module.sie.project_id
}

output "values" {
  value = module.sie.values
}
