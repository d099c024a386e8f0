# The bucket of models and the registry of images.

data "google_project" "this" {
  project_id = var.project_id
}

resource "google_storage_bucket" "models" {
  project                     = var.project_id
  name                        = "${var.name}-models-${data.google_project.this.number}"
  location                    = var.region
  force_destroy               = !var.deletion_protection
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  labels                      = local.labels

  # A deleted or overwritten checkpoint can be restored.
  versioning {
    enabled = true
  }
}

resource "google_artifact_registry_repository" "images" {
  project       = var.project_id
  location      = var.region
  repository_id = var.name
  format        = "DOCKER"
  labels        = local.labels

  # A tag that was deployed always names the same image.
  docker_config {
    immutable_tags = true
  }
}
